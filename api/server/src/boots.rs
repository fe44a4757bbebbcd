//! The Boots service: what the flight recorder laid out below /run. It reads; it never writes a record.

use std::path::{Path, PathBuf};

use byre_api::proto;
use byre_api::proto::boots_server::Boots;
use byre_boots::ring::{self, Boot, End, HALF_BYTES};
use tonic::{Request, Response, Status};

use crate::convert;

/// Where the recorder lays records: the earlier boots, the newest first, and this one.
const DIRECTORY: &str = "/run/byre/boots";
/// Most bytes of a file of records.
const FILE_BYTES: u64 = ring::RING_BYTES;

/// The service.
pub(crate) struct BootsService {
    directory: PathBuf,
}

impl Default for BootsService {
    fn default() -> Self {
        Self { directory: DIRECTORY.into() }
    }
}

impl BootsService {
    /// All boots that are remembered, the running one first.
    fn boots(&self) -> Result<Vec<Boot>, Status> {
        let mut boots = read(&self.directory.join("current"))?;
        boots.extend(read(&self.directory.join("earlier"))?);
        Ok(boots)
    }
}

fn read(path: &Path) -> Result<Vec<Boot>, Status> {
    use std::io::Read as _;
    let unreadable = |error: std::io::Error| {
        Status::unavailable(format!("the flight recorder has laid out no records yet: {}: {error}", path.display()))
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes.chunks_exact(HALF_BYTES).filter_map(ring::decode_half).map(|(boot, _)| boot).collect())
}

/// The boot that a request means.
fn choose(boots: &[Boot], which: i64) -> Result<&Boot, Status> {
    let found = match u64::try_from(which) {
        Ok(number) if number > 0 => boots.iter().find(|boot| boot.number == number),
        Ok(_) | Err(_) => usize::try_from(which.unsigned_abs()).ok().and_then(|back| boots.get(back)),
    };
    found.ok_or_else(|| {
        let first = boots.last().map_or(0, |boot| boot.number);
        let last = boots.first().map_or(0, |boot| boot.number);
        Status::not_found(format!("boot {which} is not remembered; there are {first} to {last}"))
    })
}

fn told(boot: &Boot, running: bool) -> proto::Boot {
    let end = match boot.end {
        End::Open if running => "running",
        End::Open | End::CutOff => "cut_off",
        End::InOrder => "in_order",
        End::Panic => "panic",
        End::Watchdog => "watchdog",
        End::Early => "early",
        End::Failed => "failed",
    };
    let end_text = if boot.end == End::Open && !running { End::CutOff.text() } else { boot.end.text() };
    proto::Boot {
        number: boot.number,
        slot: boot.slot.to_string(),
        version: boot.version.clone(),
        began: (boot.begun_wall_s > 0).then(|| convert::timestamp(boot.begun_wall_s.saturating_mul(1000))),
        heard_seconds: boot.heard_s,
        trial: boot.trial,
        end: end.to_owned(),
        end_text: end_text.to_owned(),
        cause: boot.cause.clone(),
    }
}

#[tonic::async_trait]
impl Boots for BootsService {
    async fn list_boots(
        &self,
        _request: Request<proto::ListBootsRequest>,
    ) -> Result<Response<proto::ListBootsResponse>, Status> {
        let boots = self.boots()?;
        let boots = boots.iter().enumerate().map(|(index, boot)| told(boot, index == 0)).collect();
        Ok(Response::new(proto::ListBootsResponse { boots }))
    }

    async fn show_boot(
        &self,
        request: Request<proto::ShowBootRequest>,
    ) -> Result<Response<proto::ShowBootResponse>, Status> {
        let boots = self.boots()?;
        let boot = choose(&boots, request.get_ref().which)?;
        let running = boots.first().is_some_and(|first| first.number == boot.number);
        Ok(Response::new(proto::ShowBootResponse {
            boot: Some(told(boot, running)),
            kernel_log: String::from_utf8_lossy(&boot.tail).into_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(directory: &Path) -> BootsService {
        let write = |name: &str, boots: &[Boot]| {
            let bytes: Vec<u8> = boots.iter().flat_map(|boot| ring::encode(boot, 0)).collect();
            std::fs::write(directory.join(name), bytes).unwrap();
        };
        write("current", &[Boot::begun(9, 'a')]);
        let panicked = Boot {
            end: End::Panic,
            cause: "kernel panic: dm-verity device corrupted".to_owned(),
            tail: b"[1] words\n".to_vec(),
            ..Boot::begun(8, 'b')
        };
        write("earlier", &[panicked, Boot::begun(7, 'a')]);
        BootsService { directory: directory.to_owned() }
    }

    #[tokio::test]
    async fn the_boot_before_explains_itself() {
        let directory = tempfile::tempdir().unwrap();
        let service = service(directory.path());
        let show = async |which| {
            let answer = service.show_boot(Request::new(proto::ShowBootRequest { which })).await;
            answer.map(Response::into_inner)
        };
        let before = show(-1).await.unwrap();
        assert_eq!(
            (before.boot.unwrap().cause.as_str(), before.kernel_log.as_str()),
            ("kernel panic: dm-verity device corrupted", "[1] words\n")
        );
        assert_eq!(show(0).await.unwrap().boot.unwrap().end, "running");
        assert_eq!(show(8).await.unwrap().boot.unwrap().end, "panic");
        // Nothing was heard of its end, and it does not run any more.
        assert_eq!(show(7).await.unwrap().boot.unwrap().end, "cut_off");
        for missing in [3, -3, i64::MIN, i64::MAX] {
            let refused = show(missing).await.unwrap_err();
            assert!(refused.message().contains("7 to 9"), "{refused}");
        }
        let list = service.list_boots(Request::new(proto::ListBootsRequest {})).await.unwrap().into_inner();
        assert_eq!(list.boots.iter().map(|boot| boot.number).collect::<Vec<_>>(), [9, 8, 7]);
    }

    #[tokio::test]
    async fn without_records_it_says_so() {
        let service = BootsService { directory: "/nonexistent".into() };
        let refused = service.list_boots(Request::new(proto::ListBootsRequest {})).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
    }
}
