# Runs in mmdebstrap with the new system at hand. Arguments: the system's root, folder of files to add.
set -eu
root=$1 files=$2
mkdir -p "$root/conformance/bin" "$root/conformance/source"
cp -r "$files/." "$root/conformance/"
chroot "$root" sh -eu -c '
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -y -o APT::Install-Recommends=false build-dep runc golang-github-opencontainers-runtime-tools
    apt-get -q -y --no-install-recommends install golang-github-mrunalp-fileutils-dev golang-github-google-uuid-dev golang-github-urfave-cli-dev
    # The suites in their sources: the newest version whose archive the mirror has, checked against the signed index.
    cd /conformance/source
    for package in crun runc golang-github-opencontainers-runtime-tools; do
        for version in $(apt-cache showsrc "$package" | sed -n "s/^Version: //p" | sort -rVu); do
            line=$(apt-get source --print-uris "$package=$version" 2>/dev/null | grep -E "\.orig\.tar\.[a-z0-9]+ " | head -n 1) || continue
            set -- $line
            uri=$(echo "$1" | tr -d "\047") file=$2 sum=${4#SHA256:}
            /usr/lib/apt/apt-helper download-file "$uri" "/conformance/source/$file" "SHA256:$sum" > /dev/null 2>&1 || continue
            mkdir "$package"
            tar -C "$package" --strip-components=1 -xf "$file"
            rm "$file"
            echo "source-$package $version" >> /conformance/versions
            break
        done
        [ -d "$package" ] || { echo "no archive of $package can be fetched"; exit 1; }
    done
    dpkg-query -W -f "\${Package} \${Version}\n" crun runc criu podman containerd >> /conformance/versions
'
ln -sf /usr/bin/crun "$root/conformance/bin/crun"
ln -sf /usr/sbin/runc "$root/conformance/bin/runc"
