//! What `kvd --version` says: the version, and the formats by which two versions fit each other or do not.
//!
//! Each number is the one that the code itself uses; none is written down here.

use std::sync::{Arc, LazyLock};

use kv_proto::segment::{Backed, Geometry, Words, Writer, words_for};
use kv_proto::wire::PROTOCOL_VERSION;
use kvd::store;

/// For `--version`; `-V` shows its first line alone.
pub(super) static LONG: LazyLock<String> = LazyLock::new(|| {
    let (version, segment, disk) = (env!("CARGO_PKG_VERSION"), segment_layout(), store::FORMAT);
    format!("{version}\nwire format {PROTOCOL_VERSION}\nsegment format {segment}\ndisk format {disk}")
});

/// The layout that a segment of this program says it has, in its second word, to whoever maps it.
fn segment_layout() -> u64 {
    let geometry = Geometry::exact(4, 1, 8, 8);
    let words = Words::heap(words_for(geometry.bytes()));
    let _laid_out = Writer::create(Arc::clone(&words), geometry, 0, Backed::Memory, 0);
    words.load(1)
}
