#!/bin/busybox sh
# The guest's initramfs: one module, one mount, and the script that is PID 1.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
until /bin/busybox mount -t ext4 /dev/vda /root 2>/dev/null; do /bin/busybox sleep 0.01; done
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /bin/sh /conformance/guest.sh
