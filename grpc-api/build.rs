//! Generates the API from `proto/`; protox compiles it, so no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

/// Messages with a secret in them: what they show is written by hand.
const SECRET: [&str; 4] = [
    ".aosidecar.v1.KeyOffer",
    ".aosidecar.v1.KeyAnswer",
    ".aosidecar.v1.KeySpec",
    ".aosidecar.v1.ValidateConfigRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../proto");
    let files = ["aosidecar/v1/operator.proto", "aosidecar/v1/peer.proto"];
    let descriptors = protox::compile(files, ["../proto"])?;
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    fs::write(folder.join("aosidecar.v1.bin"), descriptors.encode_to_vec())?;
    let mut names = prost_build::Config::new();
    names.enable_type_names();
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(SECRET)
        .codec_path("crate::codec::Codec")
        .compile_fds_with_config(descriptors, names)?;
    Ok(())
}
