//! Processors: topology from sysfs, model and features from /proc/cpuinfo.

use std::collections::BTreeSet;

use crate::read::{Root, attribute, file, names, number};
use crate::types::{Cpu, Vulnerability};

/// Kernel names of features and the names that node-feature-discovery publishes for them (`cpu-cpuid.NAME`).
const FEATURES: &[(&str, &str)] = &[
    ("adx", "ADX"),
    ("aes", "AESNI"),
    ("amx_bf16", "AMXBF16"),
    ("amx_complex", "AMXCOMPLEX"),
    ("amx_fp16", "AMXFP16"),
    ("amx_int8", "AMXINT8"),
    ("amx_tile", "AMXTILE"),
    ("avx", "AVX"),
    ("avx2", "AVX2"),
    ("avx512_4fmaps", "AVX5124FMAPS"),
    ("avx512_4vnniw", "AVX5124VNNIW"),
    ("avx512_bf16", "AVX512BF16"),
    ("avx512_bitalg", "AVX512BITALG"),
    ("avx512_fp16", "AVX512FP16"),
    ("avx512_vbmi2", "AVX512VBMI2"),
    ("avx512_vnni", "AVX512VNNI"),
    ("avx512_vp2intersect", "AVX512VP2INTERSECT"),
    ("avx512_vpopcntdq", "AVX512VPOPCNTDQ"),
    ("avx512bw", "AVX512BW"),
    ("avx512cd", "AVX512CD"),
    ("avx512dq", "AVX512DQ"),
    ("avx512er", "AVX512ER"),
    ("avx512f", "AVX512F"),
    ("avx512ifma", "AVX512IFMA"),
    ("avx512pf", "AVX512PF"),
    ("avx512vbmi", "AVX512VBMI"),
    ("avx512vl", "AVX512VL"),
    ("avx_ifma", "AVXIFMA"),
    ("avx_ne_convert", "AVXNECONVERT"),
    ("avx_vnni", "AVXVNNI"),
    ("avx_vnni_int8", "AVXVNNIINT8"),
    ("bmi1", "BMI1"),
    ("bmi2", "BMI2"),
    ("cldemote", "CLDEMOTE"),
    ("clzero", "CLZERO"),
    ("cmpccxadd", "CMPCCXADD"),
    ("cx16", "CX16"),
    ("cx8", "CMPXCHG8"),
    ("enqcmd", "ENQCMD"),
    ("erms", "ERMS"),
    ("f16c", "F16C"),
    ("fma", "FMA3"),
    ("fma4", "FMA4"),
    ("fsrm", "FSRM"),
    ("fxsr", "FXSR"),
    ("fxsr_opt", "FXSROPT"),
    ("gfni", "GFNI"),
    ("hle", "HLE"),
    ("hypervisor", "HYPERVISOR"),
    ("ibpb", "IBPB"),
    ("ibs", "IBS"),
    ("ibt", "CETIBT"),
    ("lahf_lm", "LAHF"),
    ("abm", "LZCNT"),
    ("mmx", "MMX"),
    ("movbe", "MOVBE"),
    ("movdir64b", "MOVDIR64B"),
    ("movdiri", "MOVDIRI"),
    ("mpx", "MPX"),
    ("mwaitx", "MWAITX"),
    ("nx", "NX"),
    ("osxsave", "OSXSAVE"),
    ("pclmulqdq", "CLMUL"),
    ("pni", "SSE3"),
    ("popcnt", "POPCNT"),
    ("prefetchi", "PREFETCHI"),
    ("rdpru", "RDPRU"),
    ("rdrand", "RDRAND"),
    ("rdseed", "RDSEED"),
    ("rdtscp", "RDTSCP"),
    ("rtm", "RTM"),
    ("serialize", "SERIALIZE"),
    ("sev", "SEV"),
    ("sev_es", "SEV_ES"),
    ("sev_snp", "SEV_SNP"),
    ("sgx", "SGX"),
    ("sgx_lc", "SGXLC"),
    ("sha_ni", "SHA"),
    ("sse", "SSE"),
    ("sse2", "SSE2"),
    ("sse4_1", "SSE4"),
    ("sse4_2", "SSE42"),
    ("sse4a", "SSE4A"),
    ("ssse3", "SSSE3"),
    ("stibp", "STIBP"),
    ("svm", "SVM"),
    ("syscall", "SYSCALL"),
    ("tbm", "TBM"),
    ("tdx_guest", "TDX_GUEST"),
    ("tsxldtrk", "TSXLDTRK"),
    ("user_shstk", "CETSS"),
    ("vaes", "VAES"),
    ("vmx", "VMX"),
    ("vpclmulqdq", "VPCLMULQDQ"),
    ("waitpkg", "WAITPKG"),
    ("wbnoinvd", "WBNOINVD"),
    ("xop", "XOP"),
    ("xsave", "XSAVE"),
    ("xsavec", "XSAVEC"),
    ("xsaveopt", "XSAVEOPT"),
    ("xsaves", "XSAVES"),
];

/// What /proc/cpuinfo says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Info {
    vendor: String,
    model: String,
    family: u32,
    model_number: u32,
    stepping: u32,
    frequency_khz: Option<u64>,
    flags: BTreeSet<String>,
}

/// Measures the processors.
pub(crate) fn read(root: &Root) -> Cpu {
    let info = parse(&file(root.proc.join("cpuinfo")));
    let directory = root.sys.join("devices/system/cpu");
    let online = attribute(directory.join("online")).map(|list| cpu_list(&list)).unwrap_or_default();
    let (mut sockets, mut cores) = (BTreeSet::new(), BTreeSet::new());
    for cpu in &online {
        let topology = directory.join(format!("cpu{cpu}/topology"));
        let socket = number(topology.join("physical_package_id")).unwrap_or(0);
        sockets.insert(socket);
        cores.insert((
            socket,
            number(topology.join("die_id")),
            number(topology.join("core_id")).unwrap_or(u64::from(*cpu)),
        ));
    }
    let highest = online
        .first()
        .and_then(|cpu| number(directory.join(format!("cpu{cpu}/cpufreq/cpuinfo_max_freq"))))
        .filter(|khz| *khz > 0);
    let vulnerabilities = names(directory.join("vulnerabilities"))
        .into_iter()
        .filter_map(|name| {
            Some(Vulnerability { state: attribute(directory.join("vulnerabilities").join(&name))?, name })
        })
        .collect();
    Cpu {
        vendor: info.vendor,
        model: info.model,
        family: info.family,
        model_number: info.model_number,
        stepping: info.stepping,
        sockets: count(sockets.len()),
        cores: count(cores.len()),
        threads: count(online.len()),
        frequency_khz: highest.or(info.frequency_khz),
        features: features(&info.flags),
        flags: info.flags.into_iter().collect(),
        vulnerabilities,
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Flags that every processor has: a container may run on any.
fn parse(text: &str) -> Info {
    let mut info = Info::default();
    let mut first = true;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key.trim() {
            "flags" | "Features" => {
                let flags: BTreeSet<String> = value.split_whitespace().map(str::to_owned).collect();
                if first {
                    info.flags = flags;
                    first = false;
                } else if flags != info.flags {
                    info.flags.retain(|flag| flags.contains(flag));
                }
            }
            "vendor_id" if info.vendor.is_empty() => info.vendor = value.to_owned(),
            "model name" if info.model.is_empty() => info.model = value.to_owned(),
            "cpu family" if first => info.family = value.parse().unwrap_or(0),
            "model" if first => info.model_number = value.parse().unwrap_or(0),
            "stepping" if first => info.stepping = value.parse().unwrap_or(0),
            "cpu MHz" if first => info.frequency_khz = khz(value),
            _ => {}
        }
    }
    info
}

/// `2000.123` in kilohertz.
fn khz(mhz: &str) -> Option<u64> {
    let (whole, part) = mhz.split_once('.').unwrap_or((mhz, "0"));
    let thousandths: u64 = format!("{part:0<3}").get(..3)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(thousandths)
}

fn features(flags: &BTreeSet<String>) -> Vec<String> {
    let mut known: Vec<String> =
        FEATURES.iter().filter(|(kernel, _)| flags.contains(*kernel)).map(|(_, name)| (*name).to_owned()).collect();
    known.sort_unstable();
    known
}

/// A list such as `0-3,8`, as numbers; what is not one ends it. At most 8192, the kernel's own limit.
pub(crate) fn cpu_list(list: &str) -> Vec<u32> {
    const LIMIT: usize = 8192;
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) else { break };
        cpus.extend((from..=to).take(LIMIT - cpus.len()));
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_features_of_all_processors_count() {
        let info = parse(
            "processor : 0\nvendor_id\t: X\nmodel\t\t: 7\nmodel name : M\ncpu MHz : 2000.5\nflags : avx2 aes sha_ni\n\nprocessor : 1\nflags : aes avx2\n",
        );
        assert_eq!((info.vendor.as_str(), info.model.as_str(), info.model_number), ("X", "M", 7));
        assert_eq!(info.frequency_khz, Some(2_000_500));
        assert_eq!(features(&info.flags), ["AESNI", "AVX2"]);
    }

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_list("0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8]);
        assert_eq!(cpu_list(""), Vec::<u32>::new());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,200}", list in "[0-9,\\-]{0,40}") {
            let _ = parse(&text.replace(';', "\n"));
            prop_assert!(cpu_list(&list).len() <= 8192);
            let _ = khz(&text);
        }
    }
}
