# docker buildx bake       the image of the daemon, for a builder of your own
# docker buildx bake demo  the demo image, as hack/demo builds it

variable "REGISTRY" {
  default = "localhost:5000"
}

variable "TAG" {
  default = "latest"
}

# Bases, for those who have mirrors of them.
variable "GOLANG" {
  default = "golang:1.26-bookworm"
}

variable "DEBIAN" {
  default = "debian:bookworm-slim"
}

# Whose reads come first in the layers of the demo image.
variable "PROFILE" {
  default = "entrypoint"
}

target "default" {
  args = {
    GOLANG = GOLANG
    DEBIAN = DEBIAN
  }
  tags = ["${REGISTRY}/buildkitd-esgz:${TAG}"]
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
