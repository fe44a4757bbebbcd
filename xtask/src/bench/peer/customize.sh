# Runs in mmdebstrap with the new system at hand: kernel modules, our files, no unit that a container host can do without, a disk image.
# Arguments: the system's root, folder of files to add, kernel package, folder for results.
set -eu
root=$1 files=$2 kernel=$3 results=$4
mkdir "$root/kernel"
dpkg-deb -x "$kernel" "$root/kernel"
cp -a "$root/kernel/usr/lib/modules" "$root/usr/lib/"
version=$(ls "$root/usr/lib/modules")
xz -dc "$root/kernel/usr/lib/modules/$version/kernel/drivers/block/virtio_blk.ko.xz" > "$results/virtio_blk.ko"
rm -r "$root/kernel"
chroot "$root" depmod "$version"
cp -r "$files/." "$root/"
chmod 755 "$root/usr/local/bin/byre-bench" "$root/opt/bench/bundle/rootfs/byre-stamp"
# Root of the bundle's user namespace.
chown -R 100000:100000 "$root/opt/bench/bundle/rootfs"
wants=$root/etc/systemd/system/multi-user.target.wants
for unit in systemd-networkd.service bench-prepare.service bench-api.service bench-container.service bench-idle.service bench-start.service; do
    ln -sf "/etc/systemd/system/$unit" "$wants/$unit"
done
ln -sf /usr/lib/systemd/system/systemd-networkd.service "$wants/systemd-networkd.service"
for unit in getty.target getty@tty1.service serial-getty@ttyS0.service systemd-logind.service systemd-user-sessions.service \
    remote-fs.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer systemd-tmpfiles-clean.timer \
    ldconfig.service systemd-binfmt.service systemd-firstboot.service systemd-hwdb-update.service \
    systemd-journal-catalog-update.service systemd-hibernate-clear.service systemd-update-done.service systemd-sysusers.service \
    systemd-networkd-wait-online.service systemd-networkd-persistent-storage.service systemd-machine-id-commit.service systemd-pstore.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
ln -sf /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
echo peer > "$root/etc/hostname"
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' systemd containerd runc crun > "$results/versions"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
# Without what mmdebstrap has mounted in it.
mkdir -p "$results/view"
mount --bind "$root" "$results/view"
mke2fs -q -F -t ext4 -d "$results/view" "$results/peer.ext4.part" 1536m
umount "$results/view"
rmdir "$results/view"
mv "$results/peer.ext4.part" "$results/peer.ext4"
