# Read by run.sh: what container engines do all day, with the runtime $program below them. Each prints one line per step, in run.sh's form.
set -u
state=/tmp/engines
mkdir -p $state/root/bin $state/root/etc $state/root/proc $state/root/sys $state/root/dev $state/root/tmp
cp /bin/busybox $state/root/bin/
for applet in sh echo sleep cat true grep; do ln -sf busybox $state/root/bin/$applet; done
# What the containers run: says something, and ends when it is asked to.
line='trap "echo bye; exit 0" TERM; echo hello from inside; while true; do sleep 1; done'
step() { # engine, what is done, program of the step
    if timeout -k 5 "$limit" sh -c "$3" >> "$log" 2>&1 < /dev/null; then verdict=passed; else verdict=failed; fi
    echo "-- $1: $2: $verdict" >> "$log"
    echo "@ $suite $name $verdict $1: $2"
    # What never ran says nothing and never stops: nobody need wait for that.
    if [ "$2" = run ] && [ "$verdict" = failed ]; then limit=5; fi
}
export state program line log

if [ -z "$only" ] || [ "$only" = podman ]; then
    limit=120
    podman="podman --root $state/podman --runroot /run/podman-engines --storage-driver vfs --cgroup-manager cgroupfs --events-backend none --runtime $program"
    tar -C $state/root -cf $state/image.tar .
    $podman import $state/image.tar busybox:test >> "$log" 2>&1
    step podman run "$podman run -d --name one --network none --pids-limit -1 --log-driver k8s-file busybox:test sh -c '$line'"
    step podman "its state" "test \$($podman inspect --format '{{.State.Status}}' one) = running"
    step podman exec "test \"\$($podman exec one echo inside)\" = inside"
    step podman "exec's exit code" "$podman exec one sh -c 'exit 7'; test \$? = 7"
    step podman logs "until $podman logs one | grep -q 'hello from inside'; do sleep 0.2; done"
    step podman stats "$podman stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' one | grep -q '[1-9]'"
    step podman pause "$podman pause one && test \$($podman inspect --format '{{.State.Status}}' one) = paused && $podman unpause one"
    step podman stop "$podman stop -t 60 one && $podman logs one | grep -q bye && test \$($podman inspect --format '{{.State.ExitCode}}' one) = 0"
    step podman rm "$podman rm one && ! $podman inspect one"
    step podman "a user namespace" "test \"\$($podman run --rm --network none --pids-limit -1 --uidmap 0:100000:1000 --gidmap 0:100000:1000 busybox:test cat /proc/self/uid_map | tr -s ' ')\" = ' 0 100000 1000'"
    $podman rm -f one >> "$log" 2>&1
fi

if [ -z "$only" ] || [ "$only" = containerd ]; then
    limit=120
    mkdir -p $state/containerd
    cat > $state/containerd.toml <<TOML
version = 3
root = "$state/containerd/root"
state = "/run/containerd-engines"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd-engines.sock"
TOML
    containerd --log-level warn --config $state/containerd.toml >> "$log" 2>&1 &
    containerd=$!
    ctr="ctr --address /run/containerd-engines.sock"
    until $ctr version > /dev/null 2>&1; do kill -0 $containerd || break; sleep 0.2; done
    # An OCI layout, by hand: one layer, a configuration, a manifest.
    layout=$state/layout blobs=$state/layout/blobs/sha256
    mkdir -p $blobs
    blob() { sum=$(sha256sum "$1" | cut -d' ' -f1); size=$(stat -c %s "$1"); cp "$1" "$blobs/$sum"; }
    tar -C $state/root -cf $state/layer.tar .
    blob $state/layer.tar; layer=$sum layer_size=$size
    printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$layer" > $state/config.json
    blob $state/config.json; config=$sum config_size=$size
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' "$config" "$config_size" "$layer" "$layer_size" > $state/manifest.json
    blob $state/manifest.json
    printf '{"imageLayoutVersion":"1.0.0"}' > $layout/oci-layout
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"docker.io/library/busybox:test","org.opencontainers.image.ref.name":"test"}}]}' "$sum" "$size" > $layout/index.json
    tar -C $layout -cf $state/layout.tar .
    $ctr images import --local --snapshotter native $state/layout.tar >> "$log" 2>&1
    step containerd run "$ctr run -d --snapshotter native --runc-binary $program --log-uri file://$state/two.log docker.io/library/busybox:test two sh -c '$line'"
    step containerd "its state" "$ctr tasks ls | grep -q '^two .*RUNNING'"
    step containerd exec "test \"\$($ctr tasks exec --exec-id a two echo inside)\" = inside"
    step containerd "exec's exit code" "$ctr tasks exec --exec-id b two sh -c 'exit 7'; test \$? = 7"
    step containerd logs "until grep -q 'hello from inside' $state/two.log; do sleep 0.2; done"
    step containerd stats "$ctr tasks metrics two | grep -q 'memory.*[1-9]'"
    step containerd pause "$ctr tasks pause two && $ctr tasks ls | grep -q '^two .*PAUSED' && $ctr tasks resume two"
    step containerd stop "$ctr tasks kill -s SIGTERM two && until $ctr tasks ls | grep -q '^two .*STOPPED'; do sleep 0.2; done; grep -q bye $state/two.log"
    step containerd rm "$ctr tasks rm two && $ctr containers rm two && ! $ctr containers info two"
    $ctr tasks rm -f two >> "$log" 2>&1
    kill $containerd
    wait $containerd
fi
rm -rf $state
