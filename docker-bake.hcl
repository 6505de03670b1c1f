# docker buildx bake image           the daemon's image, for a builder of your own
# docker buildx bake image-rootless  the same for a user without rights
# docker buildx bake binaries        the daemon and what belongs to it, into bin/
# docker buildx bake cross           the same for each platform
# docker buildx bake test            the unit tests that need no rights
# docker buildx bake demo            the demo image, as hack/demo builds it
# docker buildx bake convert         the image SOURCE as eStargz, pushed as TARGET
#
# The same inputs give images with the same digest. They are told their commit and
# its time by the environment:
#
#   REVISION=$(git rev-parse HEAD) SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)

group "default" {
  targets = ["image"]
}

variable "REGISTRY" {
  default = "localhost:5000"
}

variable "TAG" {
  default = "latest"
}

variable "PLATFORMS" {
  default = "linux/amd64,linux/arm64"
}

variable "REVISION" {
  default = ""
}

variable "SOURCE_DATE_EPOCH" {
  default = "0"
}

# Bases, for those who have mirrors or others of them.
variable "GOLANG" {
  default = null
}

variable "DEBIAN" {
  default = null
}

variable "BINFMT" {
  default = null
}

variable "GOPROXY" {
  default = null
}

# What lists the software in an image.
variable "SBOM_GENERATOR" {
  default = "docker/buildkit-syft-scanner:stable-1"
}

# Whose reads come first in the layers of the demo image, and of a converted one.
variable "PROFILE" {
  default = "entrypoint"
}

variable "SOURCE" {
  default = ""
}

variable "TARGET" {
  default = ""
}

target "_args" {
  args = {
    GOLANG            = GOLANG
    DEBIAN            = DEBIAN
    BINFMT            = BINFMT
    GOPROXY           = GOPROXY
    REVISION          = REVISION
    SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH
  }
}

target "_image" {
  inherits  = ["_args"]
  platforms = split(",", PLATFORMS)
  attest = [
    "type=provenance,mode=max",
    "type=sbom,generator=${SBOM_GENERATOR}",
  ]
}

target "image" {
  inherits = ["_image"]
  target   = "image"
  tags     = ["${REGISTRY}/buildkitd-esgz:${TAG}"]
  output = [
    "type=registry,compression=estargz,force-compression=true,oci-mediatypes=true,rewrite-timestamp=true,estargz-profile=stage",
  ]
}

target "image-rootless" {
  inherits = ["_image"]
  target   = "rootless"
  tags     = ["${REGISTRY}/buildkitd-esgz:${TAG}-rootless"]
  output = [
    "type=registry,compression=estargz,force-compression=true,oci-mediatypes=true,rewrite-timestamp=true,estargz-profile=stage,estargz-profile-stage=profile-rootless",
  ]
}

target "binaries" {
  inherits = ["_args"]
  target   = "binaries"
  output   = ["type=local,dest=bin"]
}

target "cross" {
  inherits  = ["binaries"]
  platforms = split(",", PLATFORMS)
}

target "test" {
  inherits = ["_args"]
  target   = "test"
  output   = ["type=cacheonly"]
}

target "demo" {
  context = "hack/image"
  args = {
    BASE = "${REGISTRY}/debian:bookworm"
  }
  output = [
    "type=registry,name=${REGISTRY}/demo:${TAG},compression=estargz,force-compression=true,oci-mediatypes=true,estargz-profile=${PROFILE}",
  ]
}

# The Dockerfile is for a builder that does not know estargz-convert. All platforms
# of the source are converted, unless convert.platform is set.
target "convert" {
  dockerfile-inline = "FROM ${SOURCE}"
  output = [
    "type=registry,name=${TARGET},compression=estargz,force-compression=true,oci-mediatypes=true,estargz-profile=${PROFILE},estargz-convert=${SOURCE}",
  ]
}
