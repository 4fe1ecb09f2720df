//! A client that wants to change what it may only read: it speaks the wire by hand, keeps the descriptors it is handed, and
//! tries every way that safe code has. The ways that need `unsafe` are tried beside `Words::memfd`.

use std::fs::File;
use std::io::{IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use kv_proto::segment::{Control, Reader, Words};
use kv_proto::wire::{Envelope, Hello, PROTOCOL_MAGIC, Request, Response, decode, encode_into, split_frame};
use nix::unistd::geteuid;
use rustix::fs::{FallocateFlags, Mode, SealFlags, fallocate, fchmod, fcntl_add_seals, fstat, ftruncate};
use rustix::io::{pwrite, write};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::shared::{attach, public_copy, run_role, var};
use crate::support::{Home, SOON};

#[test]
fn a_client_changes_nothing_of_what_it_is_handed() {
    let home = Home::configured("[access]\nusers = [\"4242\"]\n[caches.open]\nmemory = \"4MiB\"\n");
    let daemon = home.start();
    let client = home.client();
    let cache = client.cache("open");
    cache.put("k", "v", None).unwrap();
    attach(&client, "open");
    let binary = public_copy(home.path());
    let mut roles = vec![Command::new(std::env::current_exe().unwrap())];
    roles.extend(binary.map(|binary| {
        let mut other = Command::new(binary);
        other.uid(4_242).gid(4_242).current_dir("/");
        other
    }));
    for mut command in roles {
        command.env("KVD_DAEMON", daemon.pid().to_string());
        let said = run_role("intruder", command, &home.socket());
        assert!(said.contains("2 descriptors, nothing was let through"), "{said}");
        // The daemon neither died of it nor fails to write, and what was there is there.
        assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"v"[..]));
        for n in 0..100 {
            cache.put("counter", n.to_string(), None).unwrap();
        }
        assert_eq!(cache.get("counter").unwrap().as_deref(), Some(&b"99"[..]));
        assert!(crate::shared::path_of(&client, "open").is_shared());
    }
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
}

/// In a worker, of the daemon's user or another.
pub(crate) fn intruder() {
    let descriptors = handed(Path::new(&var("KVD_SOCKET")), "open");
    for fd in &descriptors {
        try_descriptor(fd);
        try_opening_again(&format!("/proc/self/fd/{}", fd.as_raw_fd()));
    }
    let is_owner = fstat(&descriptors[0]).unwrap().st_uid == geteuid().as_raw();
    for fd in &descriptors {
        let allowed = fchmod(fd, Mode::RWXU | Mode::RWXG).is_ok();
        assert!(is_owner || !allowed, "fchmod by somebody else");
        // The owner may change a mode, and gains nothing by it.
        try_descriptor(fd);
        try_opening_again(&format!("/proc/self/fd/{}", fd.as_raw_fd()));
    }
    // What every client does with them; then its own map.
    let control = Control::attach(&descriptors[0]).expect("as any client");
    let words = Words::attach(&descriptors[1]).expect("as any client");
    let reader = Reader::attach(control, words).expect("as any client");
    try_map();
    assert!(is_owner || nobody_opens_the_daemons_memory(), "the memory of another user's daemon was opened");
    println!(
        "{} descriptors, nothing was let through, {} times overtaken",
        descriptors.len(),
        reader.times_overtaken()
    );
}

/// What the daemon hands to whoever asks by the wire.
pub(crate) fn handed(socket: &Path, cache: &str) -> Vec<OwnedFd> {
    let mut stream = UnixStream::connect(socket).expect("the daemon serves");
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut out = Vec::new();
    encode_into(&mut out, &Hello { magic: PROTOCOL_MAGIC, version: 1, oldest: 1, name: "intruder" });
    encode_into(&mut out, &Envelope { number: 0, request: Request::Attach { cache } });
    stream.write_all(&out).unwrap();
    let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let mut space = [0; 4_096];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut rights = RecvAncillaryBuffer::new(&mut room);
        let got = recvmsg(&stream, &mut [IoSliceMut::new(&mut space)], &mut rights, RecvFlags::CMSG_CLOEXEC);
        let got = got.expect("an answer").bytes;
        assert_ne!(got, 0, "closed after {bytes:?}");
        bytes.extend_from_slice(&space[..got]);
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        // The welcome, and the answer behind it.
        let Some((_, rest)) = split_frame(&bytes, 1 << 20).unwrap() else { continue };
        if let Some((body, _)) = split_frame(rest, 1 << 20).unwrap() {
            let answer = decode::<Response<'_>>(body).unwrap();
            assert!(matches!(answer, Response::Attached { .. }), "{answer:?}");
            return descriptors;
        }
    }
}

fn try_descriptor(fd: &OwnedFd) {
    let bytes = fstat(fd).unwrap().st_size.cast_unsigned();
    let refused = |what: &str, is_refused: bool| assert!(is_refused, "{what} was let through");
    let other = || File::open("/proc/self/exe").unwrap();
    let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let as_file = File::from(fd.try_clone().unwrap());
    refused("a writable map", Words::map_file(&as_file, 4_096).is_err());
    refused("write", write(fd, b"x").is_err());
    refused("pwrite", pwrite(fd, b"x", 0).is_err());
    refused("emptying", ftruncate(fd, 0).is_err());
    refused("growing", ftruncate(fd, bytes + 4_096).is_err());
    refused("a longer fallocate", fallocate(fd, FallocateFlags::empty(), bytes, 4_096).is_err());
    refused("a hole", fallocate(fd, holes, 0, 4_096).is_err());
    refused("copying into it", std::io::copy(&mut other(), &mut &as_file).is_err());
    for seal in [SealFlags::SEAL, SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
        refused("a seal", fcntl_add_seals(fd, seal).is_err());
    }
    assert_eq!(fstat(fd).unwrap().st_size.cast_unsigned(), bytes);
}

/// Where the kernel lets us open it for writing at all, which root's may, that changes nothing either.
fn try_opening_again(path: &str) {
    let mut options = File::options();
    if let Ok(again) = options.read(true).write(true).open(path) {
        assert!(
            geteuid().is_root() || fstat(&again).unwrap().st_uid == geteuid().as_raw(),
            "{path} was opened"
        );
        try_descriptor(&again.into());
    }
    assert!(options.truncate(true).open(path).is_err(), "{path} was emptied");
    let appended = File::options().append(true).open(path).map(|again| write(again, b"x"));
    assert!(!matches!(appended, Ok(Ok(_))), "{path} was appended to");
}

/// Our own maps, by the debugger's file of our memory and by the names of the maps.
fn try_map() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains("/memfd:kvd")) {
        found += 1;
        assert!(line.contains(" r--s "), "{line}");
        let range = line.split(' ').next().expect("split yields one");
        let start = u64::from_str_radix(range.split('-').next().expect("split yields one"), 16).unwrap();
        assert!(pwrite(&memory, b"x", start).is_err(), "written by /proc/self/mem");
        try_opening_again(&format!("/proc/self/map_files/{range}"));
    }
    assert_eq!(found, 2, "{maps}");
}

fn nobody_opens_the_daemons_memory() -> bool {
    let daemon = var("KVD_DAEMON");
    File::options().write(true).open(format!("/proc/{daemon}/mem")).is_err()
        && std::fs::read_dir(format!("/proc/{daemon}/fd")).is_err()
        && std::fs::read_dir(format!("/proc/{daemon}/map_files")).is_err()
}
