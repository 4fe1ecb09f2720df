//! Berkeley DB's own text dump, as `db_dump` and `db5.3_dump` write it: how the data of its users moves over.
//!
//! ```text
//! VERSION=3
//! format=print            or bytevalue: every byte as two hex digits
//! type=hash               or btree
//! HEADER=END
//!  key                    a space, then the bytes; with format=print \\ is a backslash and \0a a byte
//!  value
//! DATA=END                another database may follow
//! ```

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Print,
    ByteValue,
}

/// Reads a dump line by line.
#[derive(Debug)]
pub(super) struct Reader {
    state: State,
    /// Databases begun.
    pub(super) databases: u64,
}

#[derive(Debug)]
enum State {
    /// Before a header, or in it.
    Header { began: bool, format: Option<Format> },
    /// A key comes next, if any.
    Key(Format),
    /// The value of this key comes next; it is the reason why it cannot be used, if so.
    Value(Format, Result<Vec<u8>, String>),
}

/// What a line was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing of its own.
    Nothing,
    /// The end of a pair.
    Pair(Vec<u8>, Vec<u8>),
}

impl Reader {
    pub(super) fn new() -> Reader {
        Reader { state: State::Header { began: false, format: None }, databases: 0 }
    }

    /// Takes a line. After `Err` the pair it belongs to is left out, and the next line may be taken, unless the dump
    /// cannot be understood at all: then `true` stands with the reason.
    pub(super) fn take(&mut self, line: &[u8]) -> Result<Found, (String, bool)> {
        match std::mem::replace(&mut self.state, State::Header { began: false, format: None }) {
            State::Header { began, format } => {
                self.header(line, began, format).map(|()| Found::Nothing).map_err(|why| (why, true))
            }
            State::Key(format) if line == b"DATA=END" => {
                let _ = format;
                Ok(Found::Nothing)
            }
            State::Key(format) => {
                let Some(text) = line.strip_prefix(b" ") else {
                    return Err(("neither a key, which begins with a space, nor DATA=END".to_owned(), true));
                };
                self.state = State::Value(format, bytes_of(text, format));
                Ok(Found::Nothing)
            }
            State::Value(format, key) => {
                let Some(text) = line.strip_prefix(b" ") else {
                    return Err(("a key without a value, which begins with a space".to_owned(), true));
                };
                self.state = State::Key(format);
                let key = key.map_err(|why| (format!("the key before it: {why}"), false))?;
                let value = bytes_of(text, format).map_err(|why| (why, false))?;
                Ok(Found::Pair(key, value))
            }
        }
    }

    /// What is missing at the end of the file, if anything.
    pub(super) fn end(&self) -> Result<(), String> {
        match self.state {
            State::Header { began: false, .. } if self.databases > 0 => Ok(()),
            State::Header { began: false, .. } => {
                Err("there is no VERSION=3 in it: not a dump of Berkeley DB".to_owned())
            }
            State::Header { .. } | State::Key(_) | State::Value(..) => {
                Err("it ends before DATA=END: the dump is not whole".to_owned())
            }
        }
    }

    fn header(&mut self, line: &[u8], began: bool, format: Option<Format>) -> Result<(), String> {
        let text = std::str::from_utf8(line).map_err(|_| "a header that is not text".to_owned())?;
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let mut format = format;
        match (name, value, began) {
            ("VERSION", "1" | "2" | "3", false) => self.databases += 1,
            ("VERSION", newer, false) => return Err(format!("VERSION={newer}, known is up to 3")),
            (_, _, false) => return Err("a dump of Berkeley DB begins with VERSION=3".to_owned()),
            ("format", "print", true) => format = Some(Format::Print),
            ("format", "bytevalue", true) => format = Some(Format::ByteValue),
            ("format", other, true) => return Err(format!("format={other}: known are print and bytevalue")),
            ("type", "btree" | "hash", true) => {}
            ("type", other, true) => {
                return Err(format!(
                    "type={other}: only btree and hash have keys; dump them with -k, load as btree"
                ));
            }
            ("HEADER", "END", true) => {
                self.state = State::Key(format.ok_or("the header names no format")?);
                return Ok(());
            }
            // Page sizes, fill factors, names: of no meaning here.
            (_other, _, true) => {}
        }
        self.state = State::Header { began: true, format };
        Ok(())
    }
}

fn bytes_of(text: &[u8], format: Format) -> Result<Vec<u8>, String> {
    match format {
        Format::ByteValue => {
            if !text.len().is_multiple_of(2) {
                return Err(format!("{} hex digits: bytes have two each", text.len()));
            }
            text.chunks(2).map(|pair| hex(pair[0], pair[1])).collect()
        }
        Format::Print => {
            let mut bytes = Vec::with_capacity(text.len());
            let mut rest = text;
            while let Some((first, after)) = rest.split_first() {
                rest = after;
                match (first, after) {
                    (b'\\', [b'\\', after @ ..]) => {
                        bytes.push(b'\\');
                        rest = after;
                    }
                    (b'\\', [high, low, after @ ..]) => {
                        bytes.push(hex(*high, *low)?);
                        rest = after;
                    }
                    (b'\\', [..]) => return Err("a backslash at the end: \\\\ or \\0a was meant".to_owned()),
                    (plain, _) => bytes.push(*plain),
                }
            }
            Ok(bytes)
        }
    }
}

fn hex(high: u8, low: u8) -> Result<u8, String> {
    let digit = |d: u8| char::from(d).to_digit(16);
    match (digit(high), digit(low)) {
        (Some(high), Some(low)) => Ok(u8::try_from(high * 16 + low).expect("two hex digits")),
        _ => Err(format!("{:?} is no byte in hex", String::from_utf8_lossy(&[high, low]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
        let mut reader = Reader::new();
        let mut pairs = Vec::new();
        for line in text.lines() {
            match reader.take(line.as_bytes()) {
                Ok(Found::Nothing) => {}
                Ok(Found::Pair(key, value)) => pairs.push((key, value)),
                Err((why, _)) => return Err(why),
            }
        }
        reader.end().map(|()| pairs)
    }

    #[test]
    fn both_formats_and_several_databases_are_read() {
        let text = "VERSION=3\nformat=print\ndatabase=a\ntype=btree\ndb_pagesize=4096\nHEADER=END\n k\\\\1\n v\\0a\\ff\n \n empty key\nDATA=END\n\
            VERSION=3\nformat=bytevalue\ntype=hash\nHEADER=END\n 6b32\n \nDATA=END\n";
        let expected = [
            (b"k\\1".to_vec(), b"v\n\xff".to_vec()),
            (vec![], b"empty key".to_vec()),
            (b"k2".to_vec(), vec![]),
        ];
        assert_eq!(pairs(text).unwrap(), expected);
    }

    #[test]
    fn what_is_no_dump_says_why() {
        let head = "VERSION=3\nformat=print\ntype=btree\nHEADER=END\n";
        for (text, why) in [
            ("".to_owned(), "not a dump"),
            ("{}\n".to_owned(), "begins with VERSION=3"),
            ("VERSION=4\n".to_owned(), "VERSION=4"),
            ("VERSION=3\nformat=print\ntype=recno\nHEADER=END\n".to_owned(), "type=recno"),
            ("VERSION=3\ntype=hash\nHEADER=END\n".to_owned(), "no format"),
            (format!("{head} k\n v\n"), "not whole"),
            (format!("{head} k\nDATA=END\n"), "without a value"),
            (format!("{head}k\n v\nDATA=END\n"), "begins with a space"),
            (format!("{head} k\\zz\n v\nDATA=END\n"), "no byte in hex"),
            (format!("{head} k\n v\\\nDATA=END\n"), "backslash at the end"),
        ] {
            let error = pairs(&text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
