//! Arguments of commands that work on the hubs and their caches.

use clap::Args;

#[derive(Args)]
pub struct DownloadArgs {
    /// hf:owner/name or ms:owner/name, with @revision (a branch, tag or commit) and /path/in/repo
    /// behind if wanted
    pub id: String,
    /// Only files of this pattern, e.g. --include "*.json" (* stands for / too; may be repeated)
    /// [default: what a model, or data, is read from]
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// The repository is a dataset
    #[arg(long)]
    pub dataset: bool,
    /// A branch, tag or commit [default: the id's, else main (ms: master)]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
}

#[derive(Args)]
pub struct CacheArgs {
    /// Remove what nobody needs: blobs that no snapshot has, files that are not whole, links to
    /// nothing
    #[arg(long)]
    pub prune: bool,
}
