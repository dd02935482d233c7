//! Direct kernel boot: ELF/PVH and bzImage, initrd, command line, boot memory maps.
