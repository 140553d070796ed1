//! Generates the API from `proto/`; protox compiles it, so no `protoc` is needed.

use std::error::Error;

/// Messages with a secret in them. What they show and how they are dropped is written by hand.
const SECRET: [&str; 2] = [".aosidecar.v1.KeyOffer", ".aosidecar.v1.KeyAnswer"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../proto");
    let files = ["aosidecar/v1/operator.proto", "aosidecar/v1/peer.proto"];
    let descriptors = protox::compile(files, ["../proto"])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    Ok(())
}
