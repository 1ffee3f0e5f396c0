//! Generates the client's stubs from formid's protos, with protox instead of protoc, so that a build does not need
//! protoc.

use std::error::Error;

/// Path of formid's folder `proto`.
const PROTO: &str = "../../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}/formid");
    let protos = ["formid/v1/collector.proto", "formid/v1/dispatcher.proto"];
    let descriptors = protox::compile(protos, [PROTO])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
