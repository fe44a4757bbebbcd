#!/bin/busybox sh
# The peer's initramfs: one module, one mount, and PID 1. Everything else that it needs is built into the kernel.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
until /bin/busybox mount -t ext4 /dev/vda /root 2>/dev/null; do /bin/busybox sleep 0.01; done
/bin/busybox mount -o move /dev /root/dev
echo "bench: exec" > /root/dev/kmsg
exec /bin/busybox switch_root /root /sbin/init
