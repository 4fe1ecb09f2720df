//! The session cookie: an id, until when it counts, and a MAC over both by a key that only we have.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl": don't trust the client. The cookie holds an id and a MAC over it, so
//! nobody tries out other people's ids, and a forged one costs no look-up. Pitfalls: comparing MACs byte by byte, which tells by its
//! time how much was right ([`Mac::verify_slice`] takes the same time always); and one key for ever: the first key of the file signs,
//! the others are still believed, and whoever comes with an old one gets a new cookie. A worker that started later may sign with a newer key
//! than this one has read: before anybody is taken for a stranger it is asked whether the file has changed.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::faults::Fault;

/// Its name.
pub(crate) const NAME: &str = "shop";
/// How long a cookie counts. It is renewed when half of that is over.
pub(crate) const LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Longest cookie that is looked at.
const BYTES_MAX: usize = 256;
/// Keys that are believed, the one that signs included.
const KEYS_MAX: usize = 3;
const KEY_BYTES: usize = 32;
const ID_BYTES: usize = 18;

/// A visitor's session, as its cookie names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(String);

impl SessionId {
    /// One that nobody has, and nobody guesses.
    pub(crate) fn random() -> Result<SessionId, Fault> {
        let mut bytes = [0; ID_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(SessionId(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The one that follows another by a form: always the same, and nobody finds it who does not know both and our key.
    pub(crate) fn derived(keys: &Keys, before: &SessionId, form: &str) -> SessionId {
        SessionId(keys.sign("sign-in", &format!("{}.{form}", before.0)))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// One that another process of a test made.
    #[cfg(test)]
    pub(crate) fn of_text(text: &str) -> SessionId {
        SessionId(text.to_owned())
    }
}

/// What a cookie says, once it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Believed {
    pub(crate) id: SessionId,
    /// It is half over, or signed by an old key.
    pub(crate) is_to_renew: bool,
}

/// Signs and believes cookies, and whatever else only we may have written.
pub(crate) struct Keys {
    file: PathBuf,
    known: RwLock<Known>,
}

/// What the file said when it was last read.
struct Known {
    keys: Vec<[u8; KEY_BYTES]>,
    stamp: Stamp,
}

/// Which file it was: one that takes its place has another number or another time.
type Stamp = (u64, i64, i64);

impl Keys {
    /// The keys of a file, one a line, the one that signs first; made, readable by this user alone, where there is none.
    pub(crate) fn of_file(file: &Path) -> Result<Keys, Fault> {
        let keys = match Known::read(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                replace(file, &[])?;
                Known::read(file)
            }
            read => read,
        };
        let known = keys.map_err(|source| Fault::Io { what: "keys of cookies", source })?;
        Ok(Keys { file: file.to_owned(), known: RwLock::new(known) })
    }

    /// Signs with a new key from now on, and believes the former ones for a while. Workers sign with it from their next start on, and
    /// know it as soon as they meet it.
    pub(crate) fn rotate(&self) -> Result<Keys, Fault> {
        replace(&self.file, &self.with(|keys| keys.to_vec()))?;
        Keys::of_file(&self.file)
    }

    fn with<T>(&self, use_keys: impl FnOnce(&[[u8; KEY_BYTES]]) -> T) -> T {
        use_keys(&self.known.read().unwrap_or_else(PoisonError::into_inner).keys)
    }

    /// Reads the file again if it is another one than before; whether it was. Only a look at it for whoever sends nonsense.
    fn has_changed(&self) -> bool {
        let old = self.known.read().unwrap_or_else(PoisonError::into_inner).stamp;
        if stamp(&self.file).map_or(true, |new| new == old) {
            return false;
        }
        match Known::read(&self.file) {
            Ok(known) => *self.known.write().unwrap_or_else(PoisonError::into_inner) = known,
            Err(error) => tracing::warn!(%error, "keys of cookies have changed and cannot be read"),
        }
        true
    }

    fn mac(key: &[u8; KEY_BYTES], purpose: &str, text: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        // What is signed for one purpose must not be taken for another's.
        mac.update(purpose.as_bytes());
        mac.update(b"\0");
        mac.update(text.as_bytes());
        mac
    }

    /// A MAC over a text, by the key that signs.
    pub(crate) fn sign(&self, purpose: &str, text: &str) -> String {
        let mac = self.with(|keys| Keys::mac(&keys[0], purpose, text));
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    }

    /// Which of our keys has signed this text; the same time is taken whatever the MAC is.
    pub(crate) fn signed_by(&self, purpose: &str, text: &str, mac: &str) -> Option<usize> {
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        let position = |keys: &[[u8; KEY_BYTES]]| {
            keys.iter().position(|key| Keys::mac(key, purpose, text).verify_slice(&mac).is_ok())
        };
        self.with(position).or_else(|| self.has_changed().then(|| self.with(position)).flatten())
    }

    /// The cookie's value.
    pub(crate) fn cookie(&self, id: &SessionId, now_ms: i64) -> String {
        let life_s = i64::try_from(LIFE.as_secs()).unwrap_or(i64::MAX);
        let text = format!("{}.{}", id.0, now_ms / 1_000 + life_s);
        let mac = self.sign("session", &text);
        format!("{text}.{mac}")
    }

    /// Whose cookie it is. Forged, cut, too old, or nonsense: nobody's.
    pub(crate) fn believe(&self, cookie: &str, now_ms: i64) -> Option<Believed> {
        if cookie.len() > BYTES_MAX {
            return None;
        }
        let (text, mac) = cookie.rsplit_once('.')?;
        let by = self.signed_by("session", text, mac)?;
        let (id, until_s) = text.split_once('.')?;
        let left_s = until_s.parse::<i64>().ok()? - now_ms / 1_000;
        let is_old = left_s < i64::try_from(LIFE.as_secs() / 2).unwrap_or(0);
        (left_s > 0).then(|| Believed { id: SessionId(id.to_owned()), is_to_renew: is_old || by > 0 })
    }
}

impl Known {
    fn read(file: &Path) -> std::io::Result<Known> {
        // Before its text: if it is replaced in between, it is read again.
        let stamp = stamp(file)?;
        let text = fs::read_to_string(file)?;
        let key = |line: &str| URL_SAFE_NO_PAD.decode(line).ok()?.try_into().ok();
        let keys: Option<Vec<[u8; KEY_BYTES]>> = text.lines().take(KEYS_MAX).map(key).collect();
        let keys = keys.filter(|keys| !keys.is_empty());
        Ok(Known { keys: keys.ok_or_else(|| std::io::Error::from(ErrorKind::InvalidData))?, stamp })
    }
}

fn stamp(file: &Path) -> std::io::Result<Stamp> {
    let file = fs::metadata(file)?;
    Ok((file.ino(), file.mtime(), file.mtime_nsec()))
}

/// Puts a new key before those that there are.
fn replace(file: &Path, keys: &[[u8; KEY_BYTES]]) -> Result<(), Fault> {
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key)?;
    let all = [key].into_iter().chain(keys.iter().copied()).take(KEYS_MAX);
    let text: String = all.map(|key| URL_SAFE_NO_PAD.encode(key) + "\n").collect();
    let beside = file.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside);
    written
        .and_then(|mut written| written.write_all(text.as_bytes()).and_then(|()| written.sync_all()))
        .and_then(|()| {
            // Whoever makes the first keys at the same time: one of them stays, and both read that one.
            if keys.is_empty() {
                let linked = fs::hard_link(&beside, file);
                fs::remove_file(&beside)?;
                linked.or_else(|error| if file.exists() { Ok(()) } else { Err(error) })
            } else {
                fs::rename(&beside, file)
            }
        })
        .map_err(|source| Fault::Io { what: "keys of cookies", source })
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.with(<[_]>::len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_800_000_000_000;

    fn keys(dir: &tempfile::TempDir) -> Keys {
        Keys::of_file(&dir.path().join("keys")).unwrap()
    }

    #[test]
    fn forged_cut_and_expired_cookies_are_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&dir);
        let id = SessionId::random().unwrap();
        let cookie = keys.cookie(&id, NOW_MS);
        assert_eq!(keys.believe(&cookie, NOW_MS), Some(Believed { id, is_to_renew: false }));
        for length in 0..cookie.len() {
            assert_eq!(keys.believe(&cookie[..length], NOW_MS), None, "cut to {length}");
        }
        for at in 0..cookie.len() {
            let mut forged = cookie.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            // The last letter of a MAC has bits that stand for nothing; the decoder refuses all but one way of writing them.
            assert_eq!(keys.believe(&forged, NOW_MS), None, "byte {at} forged");
        }
        let life_ms = i64::try_from(LIFE.as_millis()).unwrap();
        assert!(keys.believe(&cookie, NOW_MS + life_ms - 1_000).unwrap().is_to_renew);
        assert_eq!(keys.believe(&cookie, NOW_MS + life_ms), None, "expired");
        for nonsense in ["", ".", "..", "a.b.c", &"x".repeat(10_000), "ü.9999999999.AAAA"] {
            assert_eq!(keys.believe(nonsense, NOW_MS), None, "{nonsense:?}");
        }
    }

    #[test]
    fn an_old_key_is_believed_for_a_while_and_signs_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let first = keys(&dir);
        let cookie = first.cookie(&SessionId::random().unwrap(), NOW_MS);
        first.rotate().unwrap();
        let second = keys(&dir);
        assert!(second.believe(&cookie, NOW_MS).unwrap().is_to_renew);
        let third = second.rotate().unwrap();
        assert!(third.believe(&cookie, NOW_MS).is_some());
        assert_eq!(third.rotate().unwrap().believe(&cookie, NOW_MS), None, "long enough");
    }

    /// One worker is replaced after the keys were changed, and signs everybody's cookie anew; the other one has not read the new key.
    #[test]
    fn a_worker_that_started_before_a_rotation_knows_who_comes_with_the_new_key() {
        let dir = tempfile::tempdir().unwrap();
        let (before, id) = (keys(&dir), SessionId::random().unwrap());
        for _ in 0..5 {
            let after = before.rotate().unwrap();
            let (cookie, form) = (after.cookie(&id, NOW_MS), after.sign("form", "x"));
            assert_eq!(
                before.believe(&cookie, NOW_MS),
                Some(Believed { id: id.clone(), is_to_renew: false })
            );
            assert_eq!(before.signed_by("form", "x", &form), Some(0));
        }
    }

    #[test]
    fn a_mac_for_one_purpose_is_not_one_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&dir);
        let mac = keys.sign("session", "x");
        assert_eq!(keys.signed_by("session", "x", &mac), Some(0));
        assert_eq!(keys.signed_by("form", "x", &mac), None);
    }
}
