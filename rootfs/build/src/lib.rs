//! byre-rootfs-build
