//! Generates the protobuf types and stubs without `protoc`, and keeps the descriptor for
//! reflection and for the compatibility test.

use prost::Message;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["dtkv/v1/kv.proto", "dtkv/v1/admin.proto"];
    let descriptors = protox::compile(protos, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("dtkv_v1.bin");
    std::fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").generate_default_stubs(true).compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
