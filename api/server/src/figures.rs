//! Figures of containers: what `byred stats` reads from the cgroup tree, joined with names, and the share of a processor by difference.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use byre_api::proto;
use byre_plan::WorkloadId;
use byre_protocol::peer::{CgroupStats, STATS_CGROUPS, StatsCall};
use byre_protocol::status::Moment;
use futures::stream::try_unfold;
use tonic::Status;

use crate::backend::{Backend, SharedBackend};
use crate::convert;
use crate::peers::Peer as Service;
use crate::workloads::Answers;

/// Shortest interval: reading a thousand cgroups takes tens of milliseconds.
const INTERVAL_MS_MIN: u32 = 200;

struct Watched {
    name: String,
    cgroup: String,
    /// CPU time at the last reading.
    before: Option<(Moment, u64)>,
}

struct Watch {
    backend: SharedBackend,
    /// Empty: all running containers.
    chosen: Vec<WorkloadId>,
    known: HashMap<WorkloadId, Watched>,
    interval: Option<Duration>,
    first: bool,
}

/// Answers a request for figures.
///
/// # Errors
/// If a workload does not exist or the interval is too short.
pub(crate) async fn stats(
    backend: &SharedBackend,
    request: proto::StatsRequest,
) -> Result<Answers<proto::StatsResponse>, Status> {
    let interval = match &request.interval {
        None => None,
        Some(interval) => match convert::duration_ms(interval, "interval")? {
            0 => None,
            millis if millis < INTERVAL_MS_MIN => {
                return Err(Status::invalid_argument(format!(
                    "interval is shorter than {INTERVAL_MS_MIN} ms: give a longer one"
                )));
            }
            millis => Some(Duration::from_millis(u64::from(millis))),
        },
    };
    let mut chosen = Vec::new();
    for text in &request.workloads {
        chosen.push(backend.inspect(text).await?.summary.id);
    }
    let watch = Watch { backend: Arc::clone(backend), chosen, known: HashMap::new(), interval, first: true };
    Ok(Box::pin(try_unfold(watch, async |mut watch| {
        if !std::mem::replace(&mut watch.first, false) {
            let Some(interval) = watch.interval else { return Ok(None) };
            tokio::time::sleep(interval).await;
        }
        let response = watch.read().await?;
        Ok(Some((response, watch)))
    })))
}

impl Watch {
    async fn read(&mut self) -> Result<proto::StatsResponse, Status> {
        let ids = self.present().await?;
        let mut stats = Vec::with_capacity(ids.len());
        for some in ids.chunks(STATS_CGROUPS) {
            let cgroups: Vec<String> =
                some.iter().filter_map(|id| self.known.get(id)).map(|watched| watched.cgroup.clone()).collect();
            let mut service = Service::call(&self.backend.sockets.stats, &StatsCall { cgroups }).await?;
            let figures: Vec<CgroupStats> = service.answer().await?;
            let by_cgroup: HashMap<&str, &CgroupStats> =
                figures.iter().map(|figures| (figures.cgroup.as_str(), figures)).collect();
            for id in some {
                if let Some(watched) = self.known.get_mut(id)
                    && let Some(figures) = by_cgroup.get(watched.cgroup.as_str())
                {
                    stats.push(joined(*id, watched, figures));
                }
            }
        }
        Ok(proto::StatsResponse { at: Some(convert::timestamp(convert::now().wall_ms)), stats })
    }

    /// Identities to be read now; their names and cgroups are known afterwards.
    async fn present(&mut self) -> Result<Vec<WorkloadId>, Status> {
        let ids = if self.chosen.is_empty() { running(&self.backend).await? } else { self.chosen.clone() };
        self.known.retain(|id, _| ids.contains(id));
        for id in &ids {
            if !self.known.contains_key(id) {
                let detail = self.backend.inspect(&id.to_string()).await?;
                let watched = Watched { name: detail.summary.name.into(), cgroup: detail.cgroup, before: None };
                self.known.insert(*id, watched);
            }
        }
        Ok(ids)
    }
}

async fn running(backend: &Backend) -> Result<Vec<WorkloadId>, Status> {
    let all = backend.list().await?;
    let running = all.iter().filter(|one| !one.built_in && convert::is_running(&one.state));
    Ok(running.map(|summary| summary.id).collect())
}

fn joined(id: WorkloadId, watched: &mut Watched, figures: &CgroupStats) -> proto::WorkloadStats {
    let now = (figures.at, figures.cpu_usage_us);
    let cpu_percent = watched.before.replace(now).map_or(0.0, |before| percent(before, now));
    proto::WorkloadStats {
        id: id.to_string(),
        name: watched.name.clone(),
        cpu_usage_us: figures.cpu_usage_us,
        cpu_percent,
        memory_bytes: figures.memory_bytes,
        memory_limit_bytes: if figures.memory_max_bytes == u64::MAX { 0 } else { figures.memory_max_bytes },
        memory_anonymous_bytes: figures.memory_anonymous_bytes,
        memory_file_bytes: figures.memory_file_bytes,
        processes: figures.processes,
        io_read_bytes: figures.io_read_bytes,
        io_written_bytes: figures.io_written_bytes,
        oom_kills: figures.oom_kills,
    }
}

/// CPU time per time, in percent of one processor. A workload that was started anew in between has used less than before; that is 0.
fn percent((then, used_then): (Moment, u64), (now, used_now): (Moment, u64)) -> f64 {
    let millis = now.boot_ms.saturating_sub(then.boot_ms);
    let used_us = used_now.saturating_sub(used_then);
    if millis == 0 {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    let percent = used_us as f64 / (millis as f64 * 1000.0) * 100.0;
    percent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_is_busy_all_the_time_is_100_percent() {
        let at = |boot_ms| Moment { boot_ms, wall_ms: 0 };
        assert!((percent((at(1000), 5_000_000), (at(3000), 7_000_000)) - 100.0).abs() < 1e-9);
        assert!(percent((at(1000), 5), (at(1000), 9)).abs() < 1e-9);
        assert!(percent((at(1000), 5_000_000), (at(3000), 10)).abs() < 1e-9);
    }
}
