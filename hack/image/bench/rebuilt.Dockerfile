# 8,000 files of 50 kB in one layer. Of another build, each hundredth is another.
ARG BASE
FROM ${BASE}
ARG BUILD=1
RUN perl -e ' \
    mkdir "/files"; \
    for my $n (0 .. 7999) { \
        srand($n % 100 ? $n : $n + 10000 * $ENV{BUILD}); \
        open(my $file, ">", "/files/$n") or die; \
        print $file pack("L*", map { rand(2 ** 32) } 1 .. 12500); \
    }'
