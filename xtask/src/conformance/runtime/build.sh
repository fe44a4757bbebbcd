# Runs inside the Debian root: builds what the suites need from their Debian sources, with Debian's own Go libraries.
# Arguments: none. Sources lie in /conformance/source/<package>, results go to /conformance/{crun,runc,tools}.
set -eu
cd /conformance
export GO111MODULE=off GOPATH=/conformance/go GOCACHE=/conformance/go-cache GOFLAGS=-buildvcs=false CGO_ENABLED=1
place() { # import path, source
    mkdir -p "$GOPATH/src/$(dirname "$1")"
    rm -rf "$GOPATH/src/$1"
    cp -r "$2" "$GOPATH/src/$1"
}
mkdir -p "$GOPATH"
# Debian's libraries lie here; what is placed beside them counts first.
export GOPATH="$GOPATH:/usr/share/gocode"

rm -rf crun runc tools
cp -r source/crun crun
# What its configure would find here.
printf '#define HAVE_ERROR_H 1\n#define HAVE_SECCOMP 1\n#define HAVE_LINUX_IOPRIO_H 1\n' > crun/tests/config.h
gcc -static -Icrun/tests -o crun/tests/init crun/tests/init.c -lseccomp

GOPATH=/conformance/go place github.com/opencontainers/runc source/runc
GOPATH=/conformance/go place github.com/opencontainers/runtime-tools source/golang-github-opencontainers-runtime-tools
mkdir -p go/src/github.com/mndrix/tap-go
cp tap.go go/src/github.com/mndrix/tap-go/tap.go

cp -r source/runc runc
mkdir -p runc/tests/cmd/_bin
for program in go/src/github.com/opencontainers/runc/tests/cmd/*/; do
    name=$(basename "$program")
    [ "$name" = _bin ] && continue
    (cd "$program" && go build -o "/conformance/runc/tests/cmd/_bin/$name" .) || echo "missing: helper $name does not build"
done
# The images that the suite would download: a Debian one that is this very system's busybox, with a shell and hard links for every applet.
mkdir -p image/bin image/sbin image/usr/bin image/usr/sbin image/etc image/tmp image/proc image/sys image/dev image/root image/var image/home image/lib
cp /bin/busybox image/bin/busybox
for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -f image/bin/busybox "image/bin/$applet"; done
printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n' > image/etc/passwd
printf 'root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n' > image/etc/group
chmod 1777 image/tmp
tar -C image -cf runc/busybox.tar .
cat > runc/hello.c <<'C'
#include <stdio.h>
int main(void) { puts("\nHello from Docker!\n"); return 0; }
C
mkdir -p hello
gcc -static -o hello/hello runc/hello.c
tar -C hello -cf runc/hello.tar .
# What reads like a Debian: its shell, and what a few tests run in it.
mkdir -p debian
cp -r image/. debian/
for applet in $(/bin/busybox --list); do ln -f debian/bin/busybox "debian/usr/bin/$applet" 2>/dev/null || cp debian/bin/busybox "debian/usr/bin/$applet"; done
for program in bash stat; do
    for file in "$(command -v $program)" $(ldd "$(command -v $program)" | grep -o '/[^ ]*'); do
        mkdir -p "debian$(dirname "$file")"
        rm -f "debian$file"
        cp -L "$file" "debian$file"
    done
done
rm -f debian/bin/bash && cp -L /bin/bash debian/bin/bash
tar -C debian -cf runc/debian.tar .
cat > runc/tests/integration/get-images.sh <<'S'
#!/bin/sh
echo BUSYBOX_IMAGE=/conformance/runc/busybox.tar
echo HELLO_IMAGE=/conformance/runc/hello.tar
echo DEBIAN_IMAGE=/conformance/runc/debian.tar
S
chmod 755 runc/tests/integration/get-images.sh

mkdir -p tools
# A function that has moved to another package of the same library since.
sed -i 's#"github.com/opencontainers/selinux/go-selinux/label"#label "github.com/opencontainers/selinux/go-selinux"#' \
    go/src/github.com/opencontainers/runtime-tools/cmd/runtimetest/main.go
(
    cd go/src/github.com/opencontainers/runtime-tools
    CGO_ENABLED=0 go build -o /conformance/tools/runtimetest ./cmd/runtimetest
    for program in validation/*/; do
        name=$(basename "$program")
        [ "$name" = util ] && continue
        go build -o "/conformance/tools/$name.t" "./$program" || echo "missing: program $name does not build"
    done
)
# The root that the programs unpack, with the busybox of this system in the place of what the archive has.
cp go/src/github.com/opencontainers/runtime-tools/rootfs-amd64.tar.gz tools/
rm -rf image debian hello go-cache
echo built > done
