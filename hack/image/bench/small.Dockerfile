# 60,000 small files of text in one layer.
ARG BASE
FROM ${BASE}
RUN perl -e ' \
    srand(1); \
    my @words = map { join("", map { chr(97 + rand(26)) } 1 .. 2 + rand(8)) } 1 .. 4000; \
    for my $n (0 .. 59999) { \
        mkdir("/files"), mkdir("/files/" . $n / 100) if $n % 100 == 0; \
        open(my $file, ">", sprintf("/files/%d/%05d.txt", $n / 100, $n)) or die; \
        print $file join(" ", map { $words[rand(@words) ** 2 / @words] } 1 .. 100 + rand(500)), "\n"; \
    }'
