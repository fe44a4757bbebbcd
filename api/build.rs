//! Compiles `proto/` to Rust and to a descriptor set for reflection. It must not need `protoc` or the network: the compiler is protox.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    // One file for each family of calls.
    let mut files = std::fs::read_dir("proto/byre/node/v1")?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>, std::io::Error>>()?;
    files.sort();
    for file in files {
        compiler.open_file(std::path::Path::new("byre/node/v1").join(file))?;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        // Output, input and archives pass through without a copy.
        .bytes(".")
        // A list printed twice is the same twice.
        .btree_map(".")
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
