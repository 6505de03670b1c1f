# Two steps that people wait for: packages are installed, and a C project is
# compiled. What they need is here before, so that neither waits for a network.
ARG BASE
FROM ${BASE} AS prepared
# As in Debian's own images: dpkg need not wait for the disk.
RUN echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/unsafe-io
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev make \
 && apt-get install -y --no-install-recommends --download-only \
    curl git jq less nano openssh-client python3-flask rsync sqlite3
WORKDIR /project
COPY <<'AWK' generate.awk
# Writes 300 C files of some 130 lines each, and a Makefile.
BEGIN {
    printf "CFLAGS = -O1 -pthread\nobjects =" >"Makefile"
    for (n = 0; n < 300; n++) {
        source(n, "file" n ".c")
        printf " file%d.o", n >"Makefile"
    }
    printf "\nlibproject.a: $(objects)\n\t$(AR) rcs $@ $(objects)\n" >"Makefile"
}
function source(n, name,    i) {
    headers = "stdio stdlib string stdint inttypes errno ctype math time signal unistd fcntl pthread " \
        "sys/types sys/stat sys/socket netinet/in arpa/inet sys/mman sys/wait"
    split(headers, header, " ")
    for (i = 1; i in header; i++)
        printf "#include <%s.h>\n", header[i] >name
    for (i = 0; i < 10; i++) {
        printf "int work%d_%d(const char *text, int count)\n{\n", n, i >name
        printf "    unsigned sum = %du;\n", n * 31 + i >name
        printf "    for (int at = 0; at < count; at++) {\n" >name
        printf "        switch (text[at] %% %d) {\n", 3 + i >name
        printf "        case 0: sum += (unsigned)at * %du; break;\n", i + 2 >name
        printf "        case 1: sum ^= sum << %d; break;\n", 1 + i % 7 >name
        printf "        default: sum -= isalpha((unsigned char)text[at]) ? sum %% %du : 1u;\n", n + 2 >name
        printf "        }\n    }\n    return sum > %du ? (int)strlen(text) : snprintf(NULL, 0, \"%%u\", sum);\n}\n", i >name
    }
    close(name)
}
AWK
RUN awk -f generate.awk

FROM prepared
# Another round does both again.
ARG ROUND
RUN : apt-get, ${ROUND}; apt-get install -y --no-install-recommends --no-download \
    curl git jq less nano openssh-client python3-flask rsync sqlite3
RUN : make, ${ROUND}; make -s -j2
