//! A static HTTP server on a port of its own that can be told to misbehave. One thread a connection, one request a connection.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is done with requests whose path contains `on`.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) on: &'static str,
    pub(crate) what: What,
    /// So many requests; then the server behaves.
    pub(crate) times: u32,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// The connection is closed behind so many bytes of the body.
    Drop(u64),
    /// Nothing more comes behind so many bytes.
    Stall(u64),
    /// A range is answered with the whole file.
    IgnoreRange,
    /// A range is answered with bytes from another place.
    WrongRange,
    /// The file is said to be longer by this, and is.
    Longer(usize),
    /// The file ends so many bytes early, and says so.
    Shorter(usize),
    /// Bytes from this place of the file on are others.
    Change(u64),
    /// This status.
    Status(u16),
    /// To itself.
    Redirect,
    /// Without a length, and without an end.
    Endless,
}

#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) path: String,
    pub(crate) from: u64,
    pub(crate) bytes: u64,
}

#[derive(Default)]
struct Shared {
    faults: Vec<Fault>,
    served: Vec<Served>,
    overrides: std::collections::HashMap<String, Option<Vec<u8>>>,
}

pub(crate) struct Server {
    address: std::net::SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

impl Server {
    pub(crate) fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (folder, serving) = (folder.to_owned(), Arc::clone(&shared));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, shared) = (folder.clone(), Arc::clone(&serving));
                // A client that goes away in the middle is what is tested.
                std::thread::spawn(move || drop(serve(&folder, &shared, stream)));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(crate) fn fault(&self, on: &'static str, what: What, times: u32) {
        self.shared.lock().unwrap().faults.push(Fault { on, what, times });
    }

    pub(crate) fn heal(&self) {
        let mut shared = self.shared.lock().unwrap();
        shared.faults.clear();
        shared.overrides.clear();
    }

    /// Serves these bytes under a path, or nothing there.
    pub(crate) fn replace(&self, path: &str, bytes: Option<Vec<u8>>) {
        self.shared.lock().unwrap().overrides.insert(path.to_owned(), bytes);
    }

    pub(crate) fn served(&self) -> Vec<Served> {
        self.shared.lock().unwrap().served.clone()
    }

    pub(crate) fn forget(&self) {
        self.shared.lock().unwrap().served.clear();
    }

    /// Bytes that were sent of paths that contain this.
    pub(crate) fn bytes_of(&self, part: &str) -> u64 {
        self.served().iter().filter(|served| served.path.contains(part)).map(|served| served.bytes).sum()
    }
}

/// The path and the first byte that are asked for.
fn asked(stream: &TcpStream) -> std::io::Result<(String, Option<u64>)> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut path, mut from) = (String::new(), None);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok((path, from));
        }
        if let Some(rest) = line.strip_prefix("GET /") {
            path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        let lower = line.to_ascii_lowercase();
        if let Some(range) = lower.strip_prefix("range: bytes=") {
            from = range.trim().trim_end_matches('-').parse::<u64>().ok();
        }
    }
}

fn serve(folder: &Path, shared: &Mutex<Shared>, mut stream: TcpStream) -> std::io::Result<()> {
    let (path, mut from) = asked(&stream)?;
    let (fault, replaced) = {
        let mut shared = shared.lock().unwrap();
        let found = shared.faults.iter_mut().find(|fault| fault.times > 0 && path.contains(fault.on));
        let fault = found.map(|fault| {
            fault.times -= 1;
            fault.what.clone()
        });
        (fault, shared.overrides.get(&path).cloned())
    };
    let file = match replaced {
        Some(replaced) => replaced,
        None => std::fs::read(folder.join(&path)).ok(),
    };
    let Some(mut file) = file else { return stream.write_all(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n") };
    let mut limit = u64::MAX;
    let mut stall = false;
    match fault {
        None => {}
        Some(What::Drop(bytes)) => limit = bytes,
        Some(What::Stall(bytes)) => {
            limit = bytes;
            stall = true;
        }
        Some(What::IgnoreRange) => from = None,
        Some(What::WrongRange) => from = from.map(|from| from + 4096),
        Some(What::Longer(more)) => file.resize(file.len() + more, 7),
        Some(What::Shorter(less)) => file.truncate(file.len() - less),
        Some(What::Change(place)) => {
            let place = usize::try_from(place).unwrap().min(file.len() - 1);
            file[place..].iter_mut().for_each(|byte| *byte ^= 0xff);
        }
        Some(What::Status(status)) => {
            return stream.write_all(format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
        Some(What::Redirect) => {
            return stream
                .write_all(format!("HTTP/1.1 302 Found\r\nLocation: /{path}\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
        Some(What::Endless) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 65536])?;
            }
        }
    }
    let start = from.unwrap_or(0).min(file.len() as u64);
    let body = &file[usize::try_from(start).unwrap()..];
    let (total, length) = (file.len(), body.len());
    let head = match from {
        Some(from) => format!(
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes {from}-{}/{total}\r\nContent-Length: {length}\r\n\r\n",
            total.saturating_sub(1)
        ),
        None => format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"),
    };
    stream.write_all(head.as_bytes())?;
    let sent = usize::try_from(limit).unwrap_or(usize::MAX).min(length);
    let result = stream.write_all(&body[..sent]);
    let served = Served { path, from: start, bytes: sent as u64 };
    shared.lock().unwrap().served.push(served);
    result?;
    if stall {
        std::thread::sleep(Duration::from_secs(5));
    }
    Ok(())
}
