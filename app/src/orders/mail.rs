//! Mail: to an SMTP server by lettre, or as `.eml` files that any mail program opens.
//!
//! From FMStocks 2000 (a subscriber mails the receipt, another the refusal). The pitfall: a receipt that is sent from the request that took the order
//! makes the buyer wait for the mail server. And an event may be delivered twice: the file is named by its event, and the
//! `Message-ID` is made of it, so that the second is the first again.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};

use crate::faults::Fault;

/// Who writes.
const FROM: &str = "The Toy Store <orders@toystore.example>";

/// How long a mail server may take over one command. Shorter than a claim of the event.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Where mail goes.
#[derive(Debug, Clone)]
pub(crate) enum Mail {
    /// One file a message in this directory.
    Files(PathBuf),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    /// What it tells of: the same event is the same letter.
    pub(crate) event: String,
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) subject: String,
    pub(crate) text: String,
}

impl Mail {
    /// `smtp`: a server, by host and port, that takes mail without encryption: one on this host; without it files in `dir`.
    pub(crate) fn open(smtp: Option<&str>, dir: PathBuf) -> Result<Mail, Fault> {
        let Some(server) = smtp else {
            std::fs::create_dir_all(&dir)
                .map_err(|source| Fault::Io { what: "directory of mail", source })?;
            return Ok(Mail::Files(dir));
        };
        let (host, port) = server.rsplit_once(':').unwrap_or((server, "25"));
        let port =
            port.parse::<u16>().map_err(|error| Fault::Mail(format!("port {port} of {server}: {error}")))?;
        let server = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host).port(port);
        Ok(Mail::Smtp(server.timeout(Some(ANSWER_WITHIN)).build()))
    }

    pub(crate) async fn send(&self, letter: Letter) -> Result<(), Fault> {
        let address: Address = letter.email.parse().map_err(of_mail)?;
        // A name with a line break in it would be a header of its own.
        let name = letter.name.replace(char::is_control, " ");
        let event = letter.event;
        let message = Message::builder()
            .from(FROM.parse().map_err(of_mail)?)
            .to(Mailbox::new(Some(name), address))
            .subject(letter.subject)
            .message_id(Some(format!("<{event}@toystore.example>")))
            .body(letter.text)
            .map_err(of_mail)?;
        match self {
            Mail::Smtp(transport) => transport.send(message).await.map(drop).map_err(of_mail),
            Mail::Files(dir) => {
                let (beside, file) = (dir.join(format!(".{event}.part")), dir.join(format!("{event}.eml")));
                let write = move || {
                    std::fs::write(&beside, message.formatted())?;
                    std::fs::rename(&beside, &file)
                };
                let written = tokio::task::spawn_blocking(write).await.map_err(of_mail)?;
                written.map_err(|source| Fault::Io { what: "mail", source })
            }
        }
    }
}

/// Whether mail can be sent there.
pub(crate) fn is_address(email: &str) -> bool {
    email.parse::<Address>().is_ok()
}

fn of_mail(error: impl std::fmt::Display) -> Fault {
    Fault::Mail(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_event_is_one_letter_and_a_name_is_no_header() {
        let dir = tempfile::tempdir().unwrap();
        let mail = Mail::open(None, dir.path().to_owned()).unwrap();
        let letter = Letter {
            event: "K7.paid".to_owned(),
            name: "Anna\r\nBcc: everybody@example.org".to_owned(),
            email: "anna@example.org".to_owned(),
            subject: "Your order".to_owned(),
            text: "Thank you".to_owned(),
        };
        for _ in 0..2 {
            mail.send(letter.clone()).await.unwrap();
        }
        let files: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files, ["K7.paid.eml"]);
        let text = std::fs::read_to_string(dir.path().join("K7.paid.eml")).unwrap();
        assert!(
            text.contains("Message-ID: <K7.paid@toystore.example>") && text.contains("Thank you"),
            "{text}"
        );
        assert!(!text.lines().any(|line| line.to_lowercase().starts_with("bcc:")), "{text}");
        assert!(is_address("anna@example.org") && !is_address("anna\r\n@example.org") && !is_address(""));
    }

    /// A mail server that takes one message; what it was told.
    async fn take_one(listener: tokio::net::TcpListener) -> String {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let (mut told, mut is_message) = (String::new(), false);
        stream.write_all(b"220 test\r\n").await.unwrap();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return told;
            }
            told.push_str(&line);
            let answer: &[u8] = match line.split_whitespace().next() {
                Some(".") => {
                    stream.write_all(b"250 taken\r\n").await.unwrap();
                    return told;
                }
                _ if is_message => continue,
                Some("DATA") => {
                    is_message = true;
                    b"354 go on\r\n"
                }
                _ => b"250 test\r\n",
            };
            stream.write_all(answer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_mail_server_is_told_the_same_and_one_that_is_away_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let mail = Mail::open(Some(&server), PathBuf::new()).unwrap();
        let letter = Letter {
            event: "K7.paid".to_owned(),
            name: "Anna".to_owned(),
            email: "anna@example.org".to_owned(),
            subject: "Your order".to_owned(),
            text: "Thank you".to_owned(),
        };
        let (told, sent) = tokio::join!(take_one(listener), mail.send(letter.clone()));
        sent.unwrap();
        assert!(
            told.contains("RCPT TO:<anna@example.org>") && told.contains("<K7.paid@toystore.example>"),
            "{told}"
        );
        assert!(mail.send(letter).await.is_err(), "it has gone");
        assert!(Mail::open(Some("host:port"), PathBuf::new()).is_err());
    }
}
