//! One file from a hub to a disk: continued where it stopped, whole and hashed before it gets its
//! name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use karat_system::{Error, Result};

use crate::hash::{Hasher, feed};
use crate::http::{Ask, Http, Sign, host, may_pass, unreachable};
use crate::progress::{Event, Progress, go_on};
use crate::remote::Hash;
use crate::retry::{asked, is_passing};

/// Ends the name of a file that is not whole.
pub(crate) const INCOMPLETE: &str = ".karat.incomplete";
/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// A file to fetch.
pub(crate) struct Job<'a> {
    /// Its path in the repository, for people.
    pub name: &'a str,
    pub url: &'a str,
    pub sign: &'a Sign,
    pub size: u64,
    /// What the bytes must be; none where the hub does not say.
    pub hash: Option<&'a Hash>,
    /// Where it grows. What is there is continued.
    pub partial: PathBuf,
    /// Where it goes once it is right.
    pub target: &'a Path,
}

/// Bytes of all files, as they come.
pub(crate) struct Meter<'a> {
    pub progress: &'a dyn Progress,
    pub done: u64,
    pub total: u64,
}

impl Meter<'_> {
    fn add(&mut self, file: &str, bytes: u64) {
        self.done += bytes;
        self.progress.event(Event::Bytes { file, done: self.done, total: self.total });
    }

    /// Counts bytes that are here already.
    pub fn skip(&mut self, file: &str, bytes: u64) {
        self.add(file, bytes);
    }

    fn take_back(&mut self, bytes: u64) {
        self.done = self.done.saturating_sub(bytes);
    }
}

/// Fetches a file; gives its SHA-256. The caller holds its lock, or `partial` is a name of its own.
///
/// # Errors
/// Data, for bytes that are not what the hub says twice in a row; failed, when the hub cannot be
/// reached or goes on failing; I/O; interrupted. What came stays in `partial` and is continued by
/// the next call, unless it is wrong.
pub(crate) fn fetch(http: &Http, job: &Job<'_>, meter: &mut Meter<'_>) -> Result<String> {
    let mut wrong = 0;
    loop {
        let sha256 = match grow(http, job, meter)? {
            (sha256, true) => sha256,
            (sha256, false) => {
                // What lay there from before may have been the wrong part.
                std::fs::remove_file(&job.partial).map_err(|e| Error::io("remove", &job.partial, e))?;
                meter.take_back(job.size);
                wrong += 1;
                if wrong < 2 {
                    continue;
                }
                let right = match job.hash {
                    Some(Hash::Sha256(digits)) => format!("SHA-256 {digits}"),
                    Some(Hash::GitSha1(digits)) => format!("git blob SHA-1 {digits}"),
                    None => "nothing".into(),
                };
                return Err(Error::data(format!(
                    "the bytes that came are not the file: their SHA-256 is {sha256}, and the hub says {right}"
                ))
                .at(job.name)
                .help("nothing was kept; try again, without the proxy or mirror if there is one"));
            }
        };
        std::fs::rename(&job.partial, job.target).map_err(|e| Error::io("rename", &job.partial, e))?;
        // The new name must survive a power cut as the content does.
        #[cfg(unix)]
        if let Some(folder) = job.target.parent() {
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("write", folder, e))?;
        }
        return Ok(sha256);
    }
}

/// Grows the partial file until it has its size; its SHA-256, and whether it is right.
fn grow(http: &Http, job: &Job<'_>, meter: &mut Meter<'_>) -> Result<(String, bool)> {
    let fail = |e| Error::io("write", &job.partial, e);
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(&job.partial).map_err(fail)?;
    let mut have = file.metadata().map_err(fail)?.len();
    if have > job.size {
        file.set_len(0).map_err(fail)?;
        have = 0;
    }
    let mut hasher = Hasher::new(job.hash, job.size);
    if have > 0 {
        feed(&mut hasher, &mut file, &job.partial, meter.progress)?;
    }
    meter.add(job.name, have);
    // What brings something new is no failure, however often it breaks.
    let (mut failures, mut most) = (0, have);
    while have < job.size {
        go_on(meter.progress)?;
        let part = Part { job, file: &mut file, hasher: &mut hasher, have: &mut have };
        let (wait, why) = match part.receive(http, meter)? {
            Received::Whole => break,
            Received::Broken { wait, why } => (wait, why),
        };
        failures = if have > most { 1 } else { failures + 1 };
        most = most.max(have);
        if failures >= http.retry.attempts {
            return Err(Error::failed(format!(
                "the download broke off {failures} times in a row without a byte: {why}"
            ))
            .at(job.name)
            .help(format!(
                "{have} of {} bytes are kept: the same command goes on from there; the address is {}",
                job.size,
                host(job.url)
            )));
        }
        http.pause(failures, wait, &host(job.url), &why, meter.progress)?;
    }
    file.sync_all().map_err(fail)?;
    Ok(hasher.finish(job.hash))
}

enum Received {
    /// As many bytes as the file has.
    Whole,
    /// Not all, and more may come.
    Broken { wait: Option<std::time::Duration>, why: String },
}

/// A file as far as it came.
struct Part<'a> {
    job: &'a Job<'a>,
    file: &'a mut File,
    hasher: &'a mut Hasher,
    have: &'a mut u64,
}

impl Part<'_> {
    /// Asks for the rest, and takes what comes of it.
    fn receive(mut self, http: &Http, meter: &mut Meter<'_>) -> Result<Received> {
        let job = self.job;
        let ask = Ask { from: (*self.have > 0).then_some(*self.have), ..Ask::get(job.url, job.sign) };
        let answer = match http.once(&ask) {
            Ok(answer) => answer,
            Err(e) if may_pass(&e) => return Ok(Received::Broken { wait: None, why: e.to_string() }),
            Err(e) => return Err(unreachable(job.url, e)),
        };
        let range = answer.header("content-range").map(str::to_string);
        match answer.status {
            206 => match range.as_deref().and_then(start_and_total) {
                Some((start, total)) if start == *self.have && total.is_none_or(|total| total == job.size) => {}
                _ => {
                    self.start_over(meter)?;
                    let why =
                        format!("it answered another range, {}", range.as_deref().unwrap_or("and does not say which"));
                    return Ok(Received::Broken { wait: None, why });
                }
            },
            // The range was ignored: what comes is the whole file.
            200 if *self.have > 0 => self.start_over(meter)?,
            200 => {}
            416 => {
                self.start_over(meter)?;
                let total =
                    range.as_deref().and_then(|r| r.rsplit('/').next()).unwrap_or("another number of").to_string();
                let why = format!("the file has {total} bytes there, not {}", job.size);
                return Ok(Received::Broken { wait: None, why });
            }
            status if is_passing(status) => {
                return Ok(Received::Broken { wait: asked(&answer.headers), why: format!("it answered {status}") });
            }
            status => return Err(crate::refusal::of_file(status, &answer.headers, job.name, job.url)),
        }
        let mut body = answer.body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            go_on(meter.progress)?;
            let n = match body.read(&mut buffer) {
                Ok(0) if *self.have == job.size => return Ok(Received::Whole),
                Ok(0) => return Ok(Received::Broken { wait: None, why: "the answer ended early".into() }),
                Ok(n) => n,
                // All came; how the connection ended is nobody's concern.
                Err(_) if *self.have == job.size => return Ok(Received::Whole),
                Err(e) => return Ok(Received::Broken { wait: None, why: e.to_string() }),
            };
            if *self.have + n as u64 > job.size {
                self.start_over(meter)?;
                return Ok(Received::Broken {
                    wait: None,
                    why: format!("more than the {} bytes of the file came", job.size),
                });
            }
            self.file.write_all(&buffer[..n]).map_err(|e| Error::io("write", &job.partial, e))?;
            self.hasher.update(&buffer[..n]);
            *self.have += n as u64;
            meter.add(job.name, n as u64);
        }
    }

    /// Throws away what is there.
    fn start_over(&mut self, meter: &mut Meter<'_>) -> Result<()> {
        let fail = |e| Error::io("write", &self.job.partial, e);
        self.file.set_len(0).map_err(fail)?;
        self.file.seek(SeekFrom::Start(0)).map_err(fail)?;
        *self.hasher = Hasher::new(self.job.hash, self.job.size);
        meter.take_back(std::mem::take(self.have));
        Ok(())
    }
}

/// `bytes 5-9/10`: the first byte, and how many the whole has, unless that is `*`.
fn start_and_total(range: &str) -> Option<(u64, Option<u64>)> {
    let (span, total) = range.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (start, _) = span.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_is_written() {
        assert_eq!(start_and_total("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(start_and_total("bytes 5-9/*"), Some((5, None)));
        assert_eq!(start_and_total("bytes */10"), None);
        assert_eq!(start_and_total("items 5-9/10"), None);
    }
}
