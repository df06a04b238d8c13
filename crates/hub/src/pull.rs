//! A model from the hub to the cache, or from the cache alone.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use formats::observe::Observer;

use crate::blob::{self, Remote};
use crate::cache::{Blob, Repository};
use crate::choice;
use crate::client::Client;
use crate::listing;
use crate::meter::Meter;
use crate::{Error, Event, ModelId, Result};

/// Which hub, as whom, and where to.
pub struct Options {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// Who asks, for gated and private models; is sent to the endpoint and nowhere else.
    pub token: Option<String>,
    /// The cache's folder, such as `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Whether the cache alone is used.
    pub is_offline: bool,
    /// The wait after the first failure of a connection; it doubles with each further one.
    pub backoff: Duration,
}

impl Options {
    /// The public hub, nobody's token, a wait of one second.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        let (endpoint, backoff) = ("https://huggingface.co".to_owned(), Duration::from_secs(1));
        Self { endpoint, token: None, cache, is_offline: false, backoff }
    }
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The folder with its files, or the GGUF that was named.
    pub path: PathBuf,
    /// The commit that its revision stands for.
    pub commit: String,
    /// What had to be downloaded.
    pub downloaded_bytes: u64,
}

/// Finds a model in the cache, and downloads what is missing there.
///
/// A model that is whole in the cache is used without asking the hub whether its branch has moved; [`pull`] asks.
///
/// # Errors
/// As [`pull`].
pub fn resolve(
    id: &ModelId,
    options: &Options,
    observer: &mut dyn Observer<Event>,
    cancel: &AtomicBool,
) -> Result<Pulled> {
    match look_into_cache(id, options)? {
        InCache::Whole(pulled) => Ok(pulled),
        InCache::Usable(pulled) => match pull(id, options, observer, cancel) {
            Err(Error::Unreachable { reason, .. }) => {
                observer.observe(Event::PullUnasked { id: id.to_string(), reason });
                Ok(pulled)
            }
            result => result,
        },
        InCache::Lacking(_) => pull(id, options, observer, cancel),
    }
}

/// Downloads what training needs of a model, as its revision stands on the hub now.
///
/// # Errors
/// Refusals of the hub ([`Error::NoRepository`], [`Error::NoRevision`], [`Error::NoFile`], [`Error::Gated`]); a
/// repository that cannot be trained on ([`Error::PickleOnly`], [`Error::NoWeights`]); too little room on the disk,
/// before the first byte; [`Error::Checksum`]; [`Error::Unreachable`]; offline, [`Error::Offline`].
pub fn pull(
    id: &ModelId,
    options: &Options,
    observer: &mut dyn Observer<Event>,
    cancel: &AtomicBool,
) -> Result<Pulled> {
    if options.is_offline {
        return offline(id, options);
    }
    let started = Instant::now();
    let cache = Repository::new(&options.cache, id);
    let mut client = Client::new(id, options, observer, cancel);
    let listing = listing::list(&mut client)?;
    let mut job = Job { client, cache, commit: listing.commit, downloaded_bytes: 0 };
    let mut files = choice::choose(id, &listing.files)?;
    if files.iter().any(|file| file == choice::INDEX) {
        job.bring(&[choice::INDEX.to_owned()], Plan::Untold)?;
        let index = job.cache.snapshot(&job.commit).join(choice::INDEX);
        files.extend(choice::shards(id, &index, Some(&listing.files))?);
    }
    job.bring(&files, Plan::Told)?;
    for file in choice::optional(id).iter().filter(|name| !listing.files.iter().any(|file| file == *name)) {
        job.cache.mark_absent(&job.commit, file)?;
    }
    job.cache.write_ref(id.revision(), &job.commit)?;
    Ok(job.finish(started))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Told,
    Untold,
}

/// A download that is going on.
struct Job<'a> {
    client: Client<'a>,
    cache: Repository,
    commit: String,
    downloaded_bytes: u64,
}

impl Job<'_> {
    /// Brings files into the commit's snapshot; those that it has are passed over.
    fn bring(&mut self, files: &[String], plan: Plan) -> Result<()> {
        let snapshot = self.cache.snapshot(&self.commit);
        let mut remotes = Vec::new();
        let mut present_bytes = 0;
        for file in files {
            match std::fs::metadata(snapshot.join(file)) {
                Ok(present) => present_bytes += present.len(),
                Err(_) => remotes.push(blob::look_up(&mut self.client, &self.commit, file)?),
            }
        }
        let download_bytes = remotes.iter().map(|remote| remote.lacking_bytes(&self.cache)).sum();
        if plan == Plan::Told {
            let size: u64 = remotes.iter().map(|remote| remote.size).sum();
            self.client.observer.observe(Event::PullPlan {
                id: self.client.id.to_string(),
                commit: self.commit.clone(),
                n_files: files.len(),
                total_bytes: present_bytes + size,
                download_bytes,
                folder: self.cache.folder().to_owned(),
            });
        }
        self.check_room(download_bytes)?;
        let mut meter = Meter::new(download_bytes);
        for remote in &remotes {
            self.fetch(remote, &mut meter)?;
        }
        self.downloaded_bytes += meter.done_bytes();
        Ok(())
    }

    fn fetch(&mut self, remote: &Remote, meter: &mut Meter) -> Result<()> {
        let blob: Blob = blob::fetch(&mut self.client, &self.cache, remote, meter)?;
        self.cache.link(&self.commit, &remote.file, &remote.digest, blob)
    }

    fn check_room(&self, need_bytes: u64) -> Result<()> {
        Ok(formats::disk::check_room(self.cache.folder(), need_bytes)?)
    }

    fn finish(self, started: Instant) -> Pulled {
        let pulled = in_snapshot(&self.cache, self.client.id, self.commit, self.downloaded_bytes);
        self.client.observer.observe(Event::PullFinished {
            path: pulled.path.clone(),
            downloaded_bytes: self.downloaded_bytes,
            seconds: started.elapsed().as_secs_f64(),
        });
        pulled
    }
}

fn in_snapshot(cache: &Repository, id: &ModelId, commit: String, downloaded_bytes: u64) -> Pulled {
    let folder = cache.snapshot(&commit);
    let path = id.file().map_or_else(|| folder.clone(), |file| folder.join(file));
    Pulled { path, commit, downloaded_bytes }
}

/// What the cache has of a model.
enum InCache {
    /// All of it.
    Whole(Pulled),
    /// What training cannot do without; whether the commit has more is not known.
    Usable(Pulled),
    /// Not these.
    Lacking(Vec<String>),
}

fn look_into_cache(id: &ModelId, options: &Options) -> Result<InCache> {
    let cache = Repository::new(&options.cache, id);
    let Some(commit) = cache.commit_of(id.revision()) else {
        return Ok(InCache::Lacking(vec![format!("revision `{}`", id.revision())]));
    };
    let missing = choice::lacking(id, &cache.snapshot(&commit))?;
    if !missing.is_empty() {
        return Ok(InCache::Lacking(missing));
    }
    let is_whole = cache.unknown(&commit, &choice::optional(id)).is_empty();
    let pulled = in_snapshot(&cache, id, commit, 0);
    Ok(if is_whole { InCache::Whole(pulled) } else { InCache::Usable(pulled) })
}

fn offline(id: &ModelId, options: &Options) -> Result<Pulled> {
    match look_into_cache(id, options)? {
        InCache::Whole(pulled) | InCache::Usable(pulled) => Ok(pulled),
        InCache::Lacking(missing) => {
            Err(Error::Offline { id: id.to_string(), cache: options.cache.clone(), missing })
        }
    }
}
