//! Compiles the protos with protox, so that a build does not need protoc. Writes the descriptor set for gRPC
//! reflection.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const PROTOS: [&str; 2] = ["formid/v1/collector.proto", "formid/v1/dispatcher.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("../../proto");
    println!("cargo:rerun-if-changed={}", root.join("formid").display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
