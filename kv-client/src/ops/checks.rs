//! What is refused before anything is sent. Called by the other operations.

use kv_proto::limits::{CACHE_NAME_BYTES_MAX, KEY_BYTES_MAX, TAG_BYTES_MAX, VALUE_BYTES_MAX};

use crate::error::{Error, Result};

pub(crate) fn check_cache(cache: &str) -> Result<()> {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let starts = cache.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if starts && cache.len() <= CACHE_NAME_BYTES_MAX && cache.bytes().all(fits) {
        return Ok(());
    }
    Err(Error::Invalid {
        message: format!(
            "{cache:?} cannot name a cache: 1 to {CACHE_NAME_BYTES_MAX} of a-z 0-9 . _ -, the first a letter or digit"
        ),
    })
}

pub(crate) fn check_item(cache: &str, key: &[u8]) -> Result<()> {
    check_cache(cache)?;
    if key.is_empty() {
        return Err(Error::invalid("the key is empty"));
    }
    Error::check("key", "bytes", key.len(), KEY_BYTES_MAX)
}

pub(super) fn check_lock(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("the name of the lock is empty"));
    }
    Error::check("name of the lock", "bytes", name.len(), KEY_BYTES_MAX)
}

pub(super) fn check_value(value: &[u8]) -> Result<()> {
    Error::check("value", "bytes", value.len(), VALUE_BYTES_MAX)
}

pub(super) fn check_tag(tag: &[u8]) -> Result<()> {
    if tag.is_empty() {
        return Err(Error::invalid("a tag is empty"));
    }
    Error::check("tag", "bytes", tag.len(), TAG_BYTES_MAX)
}
