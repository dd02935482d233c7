//! Why a boot failed: from what was said to a verdict, with stage timings and a bundle.
