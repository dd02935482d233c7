//! Guest symbols and stacks, read outside the VMM.
