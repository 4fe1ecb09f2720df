//! What `kvd --version` says: the version, and the formats by which two versions fit each other or do not.
//!
//! Each number is the one that the code itself uses; none is written down here.

use std::sync::LazyLock;

use kv_proto::segment::LAYOUT_VERSION;
use kv_proto::wire::PROTOCOL_VERSION;
use kvd::store;

/// For `--version`; `-V` shows its first line alone.
pub(super) static LONG: LazyLock<String> = LazyLock::new(|| {
    let (version, disk) = (env!("CARGO_PKG_VERSION"), store::FORMAT);
    format!("{version}\nwire format {PROTOCOL_VERSION}\nsegment format {LAYOUT_VERSION}\ndisk format {disk}")
});
