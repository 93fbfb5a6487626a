use crate::Fallible;
use crate::options::Options;
pub fn run(_options: &Options) -> Fallible<()> {
    Ok(())
}
