//! How values of an application's own types become bytes.
//!
//! ```text
//! byte 0     0xA in the high half | compressed:1 (bit 3) | negative:1 (bit 2) | encoding:2
//! then       schema version, LEB128
//! then       the encoded value; if compressed its length before (u32 LE) and an LZ4 block
//! ```
//! A negative value ("there is no such thing") has no further bytes. What does not begin so, is of another schema version, or
//! does not decode is no value of this type: a miss, counted, never a panic. Used by typed caches; plain ones keep bytes as
//! they are.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
#[cfg(feature = "lz4")]
use crate::limits::DECOMPRESSED_BYTES_MAX;

const MARK: u8 = 0xa0;
const MARK_MASK: u8 = 0xf0;
const COMPRESSED: u8 = 0b1000;
const NEGATIVE: u8 = 0b0100;
const ENCODING_MASK: u8 = 0b0011;
#[cfg(feature = "lz4")]
const LENGTH_BYTES: usize = 4;

/// The version of a type's encoding: raise it whenever the type changes, so that old and new workers run side by side and
/// neither decodes the other's bytes.
///
/// ```
/// assert_eq!(kv_client::SchemaVersion(3).0, 3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchemaVersion(pub u32);

/// How the values of one cache are encoded.
#[derive(Debug)]
pub(crate) struct Codec<T> {
    /// `None`: bytes as they are, without a header.
    header: Option<Header>,
    encode: fn(&T) -> Result<Vec<u8>>,
    decode: fn(&[u8]) -> Option<T>,
    /// Where a value is the stored bytes themselves: a buffer with them becomes one, without a copy.
    own: Option<fn(Vec<u8>) -> T>,
}

impl<T> Clone for Codec<T> {
    fn clone(&self) -> Codec<T> {
        *self
    }
}

impl<T> Copy for Codec<T> {}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    encoding: u8,
    schema: SchemaVersion,
    /// Values from this length on are compressed.
    #[cfg_attr(not(feature = "lz4"), expect(dead_code, reason = "nothing compresses"))]
    compress_from: Option<usize>,
}

/// What stored bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decoded<T> {
    Value(T),
    /// That there is nothing to be had.
    Negative,
}

impl Codec<Vec<u8>> {
    /// Bytes as they are. They cannot say that there is nothing.
    pub(crate) fn plain() -> Codec<Vec<u8>> {
        Codec {
            header: None,
            encode: |value| Ok(value.clone()),
            decode: |bytes| Some(bytes.to_vec()),
            own: Some(|bytes| bytes),
        }
    }

    /// Bytes behind a header.
    pub(crate) fn raw(schema: SchemaVersion) -> Codec<Vec<u8>> {
        let header = Some(Header { encoding: 0, schema, compress_from: None });
        Codec { header, own: None, ..Codec::plain() }
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> {
    pub(crate) fn postcard(schema: SchemaVersion) -> Codec<T> {
        Codec {
            header: Some(Header { encoding: 1, schema, compress_from: None }),
            encode: |value| postcard::to_stdvec(value).map_err(|cause| unencodable(&cause)),
            decode: |bytes| {
                let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
                rest.is_empty().then_some(value)
            },
            own: None,
        }
    }

    #[cfg(feature = "json")]
    pub(crate) fn json(self) -> Codec<T> {
        Codec {
            header: self.header.map(|header| Header { encoding: 2, ..header }),
            encode: |value| serde_json::to_vec(value).map_err(|cause| unencodable(&cause)),
            decode: |bytes| serde_json::from_slice(bytes).ok(),
            own: None,
        }
    }
}

impl<T> Codec<T> {
    #[cfg(feature = "lz4")]
    pub(crate) fn compress_from(self, bytes: usize) -> Codec<T> {
        Codec { header: self.header.map(|header| Header { compress_from: Some(bytes), ..header }), ..self }
    }

    /// Whether it can say that there is nothing.
    pub(crate) fn knows_negatives(&self) -> bool {
        self.header.is_some()
    }

    pub(crate) fn encode(&self, value: &T) -> Result<Vec<u8>> {
        let encoded = (self.encode)(value)?;
        let Some(header) = &self.header else { return Ok(encoded) };
        #[cfg(feature = "lz4")]
        if header.compress_from.is_some_and(|from| encoded.len() >= from) {
            let packed = lz4_flex::block::compress(&encoded);
            // What does not get shorter is not worth the reader's time.
            if packed.len() + LENGTH_BYTES < encoded.len() && encoded.len() <= DECOMPRESSED_BYTES_MAX {
                let mut bytes = header.begin(COMPRESSED, LENGTH_BYTES + packed.len());
                bytes.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
                bytes.extend_from_slice(&packed);
                return Ok(bytes);
            }
        }
        let mut bytes = header.begin(0, encoded.len());
        bytes.extend_from_slice(&encoded);
        Ok(bytes)
    }

    /// The bytes that say that there is nothing.
    pub(crate) fn negative(&self) -> Result<Vec<u8>> {
        Ok(self.check_negatives()?.begin(NEGATIVE, 0))
    }

    /// Whether there are such bytes.
    pub(crate) fn check_negatives(&self) -> Result<&Header> {
        self.header.as_ref().ok_or_else(|| {
            Error::invalid(
                "a cache of plain bytes cannot remember that there is nothing; use typed, or typed_bytes",
            )
        })
    }

    /// Makes a buffer of stored bytes a value where there is nothing to decode.
    #[inline]
    pub(crate) fn own(&self) -> Option<fn(Vec<u8>) -> T> {
        self.own
    }

    /// What the bytes say; `None`: nothing to this codec.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Option<Decoded<T>> {
        let Some(header) = &self.header else { return (self.decode)(bytes).map(Decoded::Value) };
        let (flags, body) = header.read(bytes)?;
        if flags & NEGATIVE != 0 {
            return body.is_empty().then_some(Decoded::Negative);
        }
        if flags & COMPRESSED == 0 {
            return (self.decode)(body).map(Decoded::Value);
        }
        #[cfg(feature = "lz4")]
        {
            let (length, packed) = body.split_first_chunk::<LENGTH_BYTES>()?;
            let length = u32::from_le_bytes(*length) as usize;
            if length > DECOMPRESSED_BYTES_MAX {
                return None;
            }
            let unpacked = lz4_flex::block::decompress(packed, length).ok()?;
            (self.decode)(&unpacked).map(Decoded::Value)
        }
        #[cfg(not(feature = "lz4"))]
        None
    }
}

impl Header {
    fn begin(&self, flags: u8, room: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(6 + room);
        bytes.push(MARK | flags | self.encoding);
        let mut rest = self.schema.0;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    /// The flags, and what follows the header, if it is ours.
    fn read<'a>(&self, bytes: &'a [u8]) -> Option<(u8, &'a [u8])> {
        let (&first, mut rest) = bytes.split_first()?;
        if first & MARK_MASK != MARK || first & ENCODING_MASK != self.encoding {
            return None;
        }
        let mut schema = 0_u64;
        for shift in (0..35).step_by(7) {
            let (&byte, tail) = rest.split_first()?;
            rest = tail;
            schema |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return (schema == u64::from(self.schema.0)).then_some((first & !MARK_MASK, rest));
            }
        }
        None
    }
}

fn unencodable(cause: &dyn std::fmt::Display) -> Error {
    Error::Codec { message: format!("the value cannot be encoded: {cause}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Toy = (String, u32);

    fn toy() -> Toy {
        ("rocket".to_owned(), 7)
    }

    #[test]
    fn what_is_encoded_decodes_to_itself_in_every_way() {
        let plain = Codec::<Toy>::postcard(SchemaVersion(300));
        #[allow(unused_mut, reason = "without features there is one way")]
        let mut codecs = vec![plain];
        #[cfg(feature = "json")]
        codecs.push(plain.json());
        #[cfg(feature = "lz4")]
        codecs.extend([plain.compress_from(0), plain.json().compress_from(0)]);
        for codec in codecs {
            let long = ("rocket".repeat(500), 7);
            for value in [toy(), long] {
                assert_eq!(codec.decode(&codec.encode(&value).unwrap()), Some(Decoded::Value(value)));
            }
            assert_eq!(codec.decode(&codec.negative().unwrap()), Some(Decoded::Negative));
        }
    }

    #[test]
    fn bytes_of_another_schema_encoding_or_making_are_no_value() {
        let codec = Codec::<Toy>::postcard(SchemaVersion(3));
        let bytes = codec.encode(&toy()).unwrap();
        assert_eq!(Codec::<Toy>::postcard(SchemaVersion(4)).decode(&bytes), None);
        #[cfg(feature = "json")]
        assert_eq!(codec.json().decode(&bytes), None);
        assert_eq!(codec.decode(b"rocket"), None);
        assert_eq!(codec.decode(b""), None);
        for cut in 0..bytes.len() {
            assert_eq!(codec.decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let seed = fastrand::u64(..);
        println!("KVD_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let codec = Codec::<Toy>::postcard(SchemaVersion(3));
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            if let Some(first) = bytes.first_mut() {
                *first = MARK | 1 | (*first & COMPRESSED);
            }
            let _ = codec.decode(&bytes);
        }
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn what_repeats_is_stored_shorter_and_a_lie_about_its_length_is_no_value() {
        let codec = Codec::<Toy>::postcard(SchemaVersion(3)).compress_from(1_024);
        let value = ("rocket".repeat(500), 7);
        let mut bytes = codec.encode(&value).unwrap();
        assert!(bytes.len() < 200, "{} bytes", bytes.len());
        bytes[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(codec.decode(&bytes), None);
    }

    #[test]
    fn plain_bytes_stay_as_they_are_and_cannot_be_negative() {
        let codec = Codec::plain();
        assert_eq!(codec.encode(&b"rocket".to_vec()).unwrap(), b"rocket");
        assert!(!codec.knows_negatives());
        assert!(codec.negative().is_err());
    }
}
