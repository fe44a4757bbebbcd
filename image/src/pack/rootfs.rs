//! Root file systems for the images that the README makes: busybox from one static binary, nginx from Debian's packages.

use std::io::{self, Read, Write};

use super::plain_file;
use super::tarball::TarWriter;
use crate::tar::{Entry, EntryKind, TarReader, Timestamp};

/// Directories of a busybox image with their modes; `mnt` and the rest are where people mount things.
const DIRECTORIES: [(&str, u32); 15] = [
    ("bin/", 0o755),
    ("dev/", 0o755),
    ("etc/", 0o755),
    ("home/", 0o755),
    ("mnt/", 0o755),
    ("proc/", 0o555),
    ("root/", 0o700),
    ("run/", 0o755),
    ("sys/", 0o555),
    ("tmp/", 0o1777),
    ("usr/", 0o755),
    ("usr/bin/", 0o755),
    ("var/", 0o755),
    ("var/log/", 0o755),
    ("var/tmp/", 0o1777),
];
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Writes a root file system around a static busybox, with a symbolic link for each of its `applets`.
///
/// # Errors
/// From writing; `InvalidInput` for an applet's name that is not one.
pub fn busybox(out: impl Write, busybox: &[u8], applets: &[String], mtime: i64) -> io::Result<()> {
    let mut tar = TarWriter::new(out);
    let mtime = Timestamp { seconds: mtime, nanoseconds: 0 };
    let entry = |path: &str, kind, mode| Entry { kind, mode, mtime, ..plain_file(path, 0) };
    for (path, mode) in DIRECTORIES {
        tar.append(&entry(path, EntryKind::Directory, mode), io::empty())?;
    }
    let program = Entry { size: busybox.len() as u64, ..entry("bin/busybox", EntryKind::File, 0o755) };
    tar.append(&program, busybox)?;
    for applet in checked_applets(applets)? {
        let link = EntryKind::Symlink(b"busybox".to_vec());
        tar.append(&entry(&format!("bin/{applet}"), link, 0o777), io::empty())?;
    }
    // Scripts begin with it.
    tar.append(&entry("usr/bin/env", EntryKind::Symlink(b"../../bin/busybox".to_vec()), 0o777), io::empty())?;
    for (path, content) in [("etc/group", GROUP), ("etc/passwd", PASSWD)] {
        let file = Entry { size: content.len() as u64, ..entry(path, EntryKind::File, 0o644) };
        tar.append(&file, content)?;
    }
    tar.finish()?;
    Ok(())
}

/// What an nginx image needs of the packages, beside the libraries; a name ending in a slash stands for all below it.
const NGINX_KEPT: [&str; 8] = [
    "usr/sbin/nginx",
    "usr/bin/busybox",
    "usr/lib64/",
    "usr/lib/x86_64-linux-gnu/",
    "usr/lib/aarch64-linux-gnu/",
    "etc/nginx/mime.types",
    "usr/share/doc/nginx/copyright",
    "usr/share/doc/busybox-static/copyright",
];
/// Libraries that only come with packages nginx's scripts want (iproute2, debconf), and plug-ins it never loads.
const NGINX_DROPPED: [&str; 20] = [
    "gconv/",
    "engines-3/",
    "ossl-modules/",
    "perl",
    "libperl",
    "libdb-",
    "libkrb5",
    "libk5crypto",
    "libgssapi",
    "libtirpc",
    "libbpf",
    "libelf",
    "libxtables",
    "libmnl",
    "libmvec",
    "libselinux",
    "libcap",
    "libpsx",
    "libnss_",
    "libbsd",
];
/// Directories that no package made, with their modes.
const NGINX_DIRECTORIES: [(&str, u32); 14] = [
    ("dev/", 0o755),
    ("etc/", 0o755),
    ("etc/nginx/", 0o755),
    ("home/", 0o755),
    ("proc/", 0o555),
    ("root/", 0o700),
    ("run/", 0o755),
    ("srv/", 0o755),
    ("sys/", 0o555),
    ("tmp/", 0o1777),
    ("usr/", 0o755),
    ("usr/bin/", 0o755),
    ("var/", 0o755),
    ("var/www/", 0o755),
];
const NGINX_LINKS: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")];
/// In the foreground, as any user, on a port that needs no privilege, logs on the container's own output. All that it
/// writes is in /tmp (nginx takes `stderr` for the descriptor, there is no such word for its other output), so a read-only root with a tmpfs there is enough.
const NGINX_CONFIG: &[u8] = b"daemon off;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr notice;
events { worker_connections 1024; }
http {
    include mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    sendfile on;
    client_body_temp_path /tmp/nginx-body;
    proxy_temp_path /tmp/nginx-proxy;
    fastcgi_temp_path /tmp/nginx-fastcgi;
    uwsgi_temp_path /tmp/nginx-uwsgi;
    scgi_temp_path /tmp/nginx-scgi;
    server {
        listen 8080;
        root /var/www;
        index index.html;
    }
}
";
const NGINX_PAGE: &[u8] = b"<!DOCTYPE html>\n<title>Byre</title>\n<h1>It works</h1>\n";

/// Writes nginx's root file system out of `packages`, the tar of a tree into which Debian's nginx and busybox-static were
/// extracted (`mmdebstrap --variant=extract`; their scripts need not run). `applets` become links to busybox.
///
/// # Errors
/// From reading and writing; `InvalidData` if the tree has no nginx or busybox.
pub fn nginx(packages: impl Read, out: impl Write, applets: &[String], mtime: i64) -> io::Result<()> {
    let mut writer = TarWriter::new(out);
    let time = Timestamp { seconds: mtime, nanoseconds: 0 };
    let entry = |path: &str, kind, mode| Entry { kind, mode, mtime: time, ..plain_file(path, 0) };
    for (path, mode) in NGINX_DIRECTORIES {
        writer.append(&entry(path, EntryKind::Directory, mode), io::empty())?;
    }
    for (path, target) in NGINX_LINKS {
        let link = EntryKind::Symlink(target.as_bytes().to_vec());
        writer.append(&entry(path, link, 0o777), io::empty())?;
    }
    let mut wanted = vec!["usr/sbin/nginx", "usr/bin/busybox", "etc/nginx/mime.types"];
    let mut reader = TarReader::new(packages);
    while let Some(mut found) = reader.next_entry().map_err(io::Error::other)? {
        let name = String::from_utf8_lossy(&found.path).trim_start_matches("./").to_owned();
        if !nginx_keeps(&name) {
            continue;
        }
        wanted.retain(|wanted| *wanted != name);
        if found.mtime.seconds >= mtime {
            found.mtime = time;
        }
        writer.append(&found, &mut reader)?;
    }
    if let Some(missing) = wanted.first() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the packages hold no {missing}")));
    }
    for applet in checked_applets(applets)? {
        let link = EntryKind::Symlink(b"busybox".to_vec());
        writer.append(&entry(&format!("usr/bin/{applet}"), link, 0o777), io::empty())?;
    }
    for (path, content) in [
        ("etc/group", GROUP),
        ("etc/passwd", PASSWD),
        ("etc/nginx/nginx.conf", NGINX_CONFIG),
        ("var/www/index.html", NGINX_PAGE),
    ] {
        let file = Entry { size: content.len() as u64, ..entry(path, EntryKind::File, 0o644) };
        writer.append(&file, content)?;
    }
    writer.finish()?;
    Ok(())
}

fn nginx_keeps(name: &str) -> bool {
    let Some(kept) = NGINX_KEPT.iter().find(|kept| name == **kept || (kept.ends_with('/') && name.starts_with(*kept)))
    else {
        return false;
    };
    !kept.ends_with("-gnu/") || !NGINX_DROPPED.iter().any(|dropped| name[kept.len()..].starts_with(dropped))
}

fn checked_applets(applets: &[String]) -> io::Result<Vec<&str>> {
    let mut applets: Vec<&str> = applets.iter().map(String::as_str).filter(|applet| *applet != "busybox").collect();
    applets.sort_unstable();
    applets.dedup();
    match applets.iter().find(|applet| applet.is_empty() || applet.contains('/') || applet.starts_with('.')) {
        Some(bad) => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{bad:?} is not an applet"))),
        None => Ok(applets),
    }
}
