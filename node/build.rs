//! Generates the node-to-node protocol and the storage records without `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["dtkv/peer/v1/peer.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::peer_codec::PeerCodec")
        .compile_fds(descriptors)?;
    // In a directory of their own: the peer messages that they use are those generated above.
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("storage");
    std::fs::create_dir_all(&out)?;
    let descriptors = protox::compile(["dtkv/storage/v1/storage.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .extern_path(".dtkv.peer.v1", "crate::peer_v1")
        .out_dir(out)
        .build_client(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
