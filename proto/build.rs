//! Compiles `tensile/v1/*.proto` with protox, a compiler written in Rust, so that no machine needs a `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// The files of the contract, relative to this crate.
const FILES: [&str; 2] = ["tensile/v1/avoidance.proto", "tensile/v1/cluster.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?);
    fs::write(out.join("tensile.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".tensile.v1.Template.pod_template").compile_fds(descriptors)?;
    Ok(())
}
