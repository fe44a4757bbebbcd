//! Limits as `update` takes them: a file, or an option for each.

use std::io::Read as _;
use std::path::PathBuf;

use byre_plan::Resources;
use byre_spec::oci::read_resources;
use serde_json::{Value, json};

use crate::error::{Error, cannot, wrong};

/// Longest file of limits.
const RESOURCES_BYTES: u64 = 256 * 1024;

/// Limits to change.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// File with linux.resources as config.json has them; `-` is standard input.
    #[arg(long, short = 'r')]
    resources: Option<PathBuf>,
    /// Bytes of memory; -1 is no limit.
    #[arg(long, allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Bytes of memory that are protected.
    #[arg(long)]
    memory_reservation: Option<i64>,
    /// Bytes of memory and swap together; -1 is no limit.
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Microseconds of processor time in a period; -1 is no limit.
    #[arg(long, allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Microseconds of a period.
    #[arg(long)]
    cpu_period: Option<u64>,
    /// Share of processor time, 2 to 262144.
    #[arg(long, visible_alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// Microseconds that may be saved up.
    #[arg(long)]
    cpu_burst: Option<u64>,
    /// Whether it runs only when nobody else wants to, 1 or 0.
    #[arg(long)]
    cpu_idle: Option<i64>,
    /// Processors.
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory nodes.
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Processes and threads; -1 is no limit.
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Share of disk time, 10 to 1000.
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Container.
    pub(crate) id: String,
}

impl Options {
    /// What is to be changed. A file stands for itself; the options are put together as a file would be.
    pub(crate) fn resources(&self) -> Result<Resources, Error> {
        let json = match &self.resources {
            Some(path) => {
                let what = || format!("read {}", path.display());
                let mut json = Vec::new();
                if path.as_os_str() == "-" {
                    std::io::stdin().take(RESOURCES_BYTES).read_to_end(&mut json).map_err(cannot(what()))?;
                } else {
                    let file = std::fs::File::open(path).map_err(cannot(what()))?;
                    file.take(RESOURCES_BYTES).read_to_end(&mut json).map_err(cannot(what()))?;
                }
                json
            }
            None => self.json().to_string().into_bytes(),
        };
        let resources = read_resources(&json)?;
        if resources == Resources::default() {
            return Err(wrong("there is nothing to change", "give --resources or a limit"));
        }
        Ok(resources)
    }

    fn json(&self) -> Value {
        json!({
            "memory": { "limit": self.memory, "reservation": self.memory_reservation, "swap": self.memory_swap },
            "cpu": {
                "quota": self.cpu_quota, "period": self.cpu_period, "shares": self.cpu_share, "burst": self.cpu_burst,
                "idle": self.cpu_idle, "cpus": self.cpuset_cpus, "mems": self.cpuset_mems,
            },
            "pids": { "limit": self.pids_limit },
            "blockIO": { "weight": self.blkio_weight },
        })
    }
}
