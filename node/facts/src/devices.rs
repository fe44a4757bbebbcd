//! Disks, network links and PCI functions, from sysfs.

use std::path::Path;

use crate::read::{Root, assigned, attribute, file, names, number};
use crate::types::{Disk, NetworkLink, Partition, PciFunction};

/// sysfs counts in these whatever the device's blocks are.
const SECTOR_BYTES: u64 = 512;
/// Block devices that are no hardware and hold nothing of their own.
const NOT_DISKS: &[&str] = &["loop", "ram", "zram"];

fn size(directory: &Path) -> Option<u64> {
    number(directory.join("size"))?.checked_mul(SECTOR_BYTES)
}

fn flag(path: impl AsRef<Path>) -> bool {
    number(path) == Some(1)
}

/// Measures block devices that have a size.
pub(crate) fn disks(root: &Root) -> Vec<Disk> {
    let all = root.sys.join("block");
    let is_disk = |name: &String| !NOT_DISKS.iter().any(|prefix| name.starts_with(prefix));
    let disks = names(&all).into_iter().filter(is_disk).filter_map(|name| {
        let directory = all.join(&name);
        let size_bytes = size(&directory).filter(|size| *size > 0)?;
        let partitions = names(&directory).into_iter().filter_map(|part| partition(&directory, part)).collect();
        Some(Disk {
            size_bytes,
            rotational: flag(directory.join("queue/rotational")),
            read_only: flag(directory.join("ro")),
            removable: flag(directory.join("removable")),
            model: attribute(directory.join("device/model")),
            block_bytes: number(directory.join("queue/logical_block_size")).unwrap_or(SECTOR_BYTES),
            partitions,
            name,
        })
    });
    disks.collect()
}

fn partition(disk: &Path, name: String) -> Option<Partition> {
    let directory = disk.join(&name);
    let number = u32::try_from(number(directory.join("partition"))?).ok()?;
    let label = assigned(&file(directory.join("uevent")), "PARTNAME");
    Some(Partition { size_bytes: size(&directory)?, number, label, name })
}

/// Measures network links.
pub(crate) fn links(root: &Root) -> Vec<NetworkLink> {
    let all = root.sys.join("class/net");
    let links = names(&all).into_iter().filter_map(|name| {
        let directory = all.join(&name);
        Some(NetworkLink {
            index: u32::try_from(number(directory.join("ifindex"))?).ok()?,
            mac: attribute(directory.join("address")),
            mtu: u32::try_from(number(directory.join("mtu"))?).ok()?,
            state: attribute(directory.join("operstate")).unwrap_or_else(|| "unknown".into()),
            // A link without a speed says -1 or refuses.
            speed_mbit_s: number(directory.join("speed")),
            driver: assigned(&file(directory.join("device/uevent")), "DRIVER"),
            name,
        })
    });
    links.collect()
}

/// Measures PCI functions.
pub(crate) fn pci(root: &Root) -> Vec<PciFunction> {
    let all = root.sys.join("bus/pci/devices");
    let hexadecimal = |path| Some(attribute(path)?.trim_start_matches("0x").to_owned());
    let functions = names(&all).into_iter().filter_map(|address| {
        let directory = all.join(&address);
        Some(PciFunction {
            class: hexadecimal(directory.join("class"))?,
            vendor: hexadecimal(directory.join("vendor"))?,
            device: hexadecimal(directory.join("device"))?,
            driver: assigned(&file(directory.join("uevent")), "DRIVER"),
            // -1 is "no node" and not a number here.
            numa_node: number(directory.join("numa_node")).and_then(|node| u32::try_from(node).ok()),
            address,
        })
    });
    functions.collect()
}
