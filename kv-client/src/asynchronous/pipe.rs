//! A connection that many callers share: requests go out in order, answers come back in order.
//!
//! A task of its own writes what is queued, as much as there is at once, and gives each answer to the caller at the head.
//! A caller that has gone is skipped; what it asked is thrown away when it comes. Called by `client`. It must never give an
//! answer to anybody but the one who asked.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::net::unix::ReadHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{timeout, timeout_at};

use super::link::{Broken, Link, read_frame, write_all};
use crate::error::{Error, Result};
use crate::frames::{Inbox, Terms};
use crate::limits::{LAST_ANSWERS_WITHIN, PIPELINE_BATCH_MAX, PIPELINE_QUEUE_MAX, RECEIVE_BYTES_KEPT_MAX};
use crate::lock::Lock;
use crate::ops::Sending;
use crate::outage::Outage;
use crate::retry::{Attempts, Failure, fits};

/// The way to one of the pipelined connections, which comes and goes.
#[derive(Debug, Default)]
pub(super) struct Lane {
    current: Lock<Option<Arc<Pipe>>>,
    // One caller connects, the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
pub(super) struct Pipe {
    queue: mpsc::Sender<Job>,
    terms: Terms,
    progress: Arc<Progress>,
    /// How long no answer at all is normal: the client's own timeout, whatever a call's is.
    patience: Duration,
    /// Set by a caller who waited all its time without any answer coming: new callers take another connection, those who
    /// wait here go on waiting.
    retired: AtomicBool,
}

#[derive(Debug, Default)]
struct Progress {
    answers: AtomicU64,
}

#[derive(Debug)]
struct Job {
    frame: Vec<u8>,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Vec<u8>, Failure>>;

impl Lane {
    /// The connection, made if need be.
    pub(super) async fn pipe(
        &self,
        settings: &crate::options::Settings,
        outage: &Arc<Outage>,
        attempts: &mut Attempts,
    ) -> Result<Arc<Pipe>> {
        if let Some(pipe) = self.live() {
            return Ok(pipe);
        }
        let connecting = timeout_at(attempts.deadline().into(), self.connecting.lock()).await;
        let _connecting = connecting.map_err(|_elapsed| attempts.timed_out(false))?;
        if let Some(pipe) = self.live() {
            return Ok(pipe);
        }
        let link = super::lanes::connect(settings, outage, attempts).await?;
        let pipe = Arc::new(Pipe::start(link, settings.op_timeout));
        *self.current.lock() = Some(Arc::clone(&pipe));
        Ok(pipe)
    }

    fn live(&self) -> Option<Arc<Pipe>> {
        let current = self.current.lock();
        let pipe = current.as_ref()?;
        let live = !pipe.queue.is_closed() && !pipe.retired.load(Ordering::Relaxed);
        live.then(|| Arc::clone(pipe))
    }
}

impl Pipe {
    fn start(link: Link, patience: Duration) -> Pipe {
        let (queue, jobs) = mpsc::channel(PIPELINE_QUEUE_MAX);
        let progress = Arc::new(Progress::default());
        let terms = link.terms;
        tokio::spawn(run(link, jobs, Arc::clone(&progress)));
        Pipe { queue, terms, progress, patience, retired: AtomicBool::new(false) }
    }

    /// Sends a request in its turn and waits for the body of its answer.
    pub(super) async fn exchange(&self, sending: &Sending, attempts: &Attempts) -> Result<Vec<u8>, Failure> {
        fits(sending, self.terms).map_err(Failure::NotSent)?;
        let answers_before = self.progress.answers.load(Ordering::Relaxed);
        let deadline = attempts.deadline().into();
        let (reply, answer) = oneshot::channel();
        match timeout_at(deadline, self.queue.reserve()).await {
            Ok(Ok(place)) => place.send(Job { frame: sending.frame.clone(), reply }),
            Ok(Err(_closed)) => return Err(Failure::NotSent(abandoned(false))),
            Err(_elapsed) => {
                self.retire_unless_moved(answers_before, attempts);
                return Err(Failure::NotSent(attempts.timed_out(false)));
            }
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // Its task is no more, with its runtime perhaps: nobody knows how far this request got.
            Ok(Err(_dropped)) => Err(Failure::Sent(abandoned(true))),
            Err(_elapsed) => {
                self.retire_unless_moved(answers_before, attempts);
                Err(Failure::Sent(attempts.timed_out(true)))
            }
        }
    }

    /// One caller's impatience is no proof; a whole wait without any answer to anybody is.
    fn retire_unless_moved(&self, answers_before: u64, attempts: &Attempts) {
        let patient = attempts.op_timeout() >= self.patience;
        if patient && self.progress.answers.load(Ordering::Relaxed) == answers_before {
            self.retired.store(true, Ordering::Relaxed);
        }
    }
}

fn abandoned(maybe_applied: bool) -> Error {
    Error::lost(maybe_applied, io::Error::new(io::ErrorKind::BrokenPipe, "the connection was given up"))
}

/// Who waits for an answer, and where in the stream of written bytes the request ends.
struct Waiting {
    end: u64,
    reply: Reply,
}

/// Runs until the connection breaks, or nobody can ask any more.
async fn run(link: Link, mut jobs: mpsc::Receiver<Job>, progress: Arc<Progress>) {
    let Link { mut stream, inbox, .. } = link;
    let (reader, writer) = stream.split();
    let waiting = Lock::default();
    let mut written = 0;
    let mut reading = std::pin::pin!(read_answers(reader, inbox, &waiting, &progress));
    let write_error = tokio::select! {
        broken = &mut reading => Err(broken),
        end = write_requests(writer.as_ref(), &mut jobs, &waiting, &mut written) => match end {
            Ok(()) => return,
            Err(error) => Ok(error),
        },
    };
    jobs.close();
    let broken = match write_error {
        Err(broken) => broken,
        // A daemon that ends takes no more, and answers what it has taken before it closes.
        Ok(error) => timeout(LAST_ANSWERS_WITHIN, reading).await.unwrap_or(Broken::Io(error)),
    };
    for Waiting { end, reply } in waiting.lock().drain(..) {
        // The daemon executes whole frames only.
        let failure = if end <= written {
            Failure::Sent(broken.error(true))
        } else {
            Failure::NotSent(broken.error(false))
        };
        // Whoever has gone does not want to know.
        let _ = reply.send(Err(failure));
    }
    while let Ok(job) = jobs.try_recv() {
        let _ = job.reply.send(Err(Failure::NotSent(abandoned(false))));
    }
}

async fn write_requests(
    stream: &UnixStream,
    jobs: &mut mpsc::Receiver<Job>,
    waiting: &Lock<VecDeque<Waiting>>,
    written: &mut u64,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(PIPELINE_BATCH_MAX);
    let mut bytes = Vec::new();
    let mut end = 0;
    while jobs.recv_many(&mut batch, PIPELINE_BATCH_MAX).await > 0 {
        for Job { frame, reply } in batch.drain(..) {
            if reply.is_closed() {
                continue;
            }
            end += frame.len() as u64;
            // Before it is written: the answer may be here before `write_all` returns.
            waiting.lock().push_back(Waiting { end, reply });
            bytes.extend_from_slice(&frame);
            if bytes.len() >= RECEIVE_BYTES_KEPT_MAX {
                write_all(stream, &bytes, written).await?;
                bytes = Vec::new();
            }
        }
        write_all(stream, &bytes, written).await?;
        bytes.clear();
    }
    Ok(())
}

async fn read_answers(
    mut stream: ReadHalf<'_>,
    mut inbox: Inbox,
    waiting: &Lock<VecDeque<Waiting>>,
    progress: &Progress,
) -> Broken {
    loop {
        let frame = match read_frame(&mut stream, &mut inbox).await {
            Ok(frame) => frame,
            Err(broken) => return broken,
        };
        let Some(Waiting { reply, .. }) = waiting.lock().pop_front() else {
            return Broken::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                "the daemon sent something nobody asked for",
            ));
        };
        progress.answers.fetch_add(1, Ordering::Relaxed);
        if !reply.is_closed() {
            let _ = reply.send(Ok(inbox.frame(frame).to_vec()));
        }
    }
}
