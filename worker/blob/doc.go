// Package blob reads ranges of a registry's blobs, and goes on reading when
// things go wrong: connections that break or fall silent, registries that are
// overloaded or away for a while, tokens and redirects that expire, servers
// that know no ranges, mirrors that lack a blob.
//
// It does not know what a blob contains and verifies nothing; whoever reads
// says so when bytes were wrong ([Stream.Corrupt]) and asks again. Neither
// does it merge or cache: worker/store asks for a chunk once, together with its
// neighbours, and [View.Window] says how much is worth asking for. Only a blob
// whose server knows no ranges is kept on disk for a while.
//
// The daemon has one [Line]. From the outside in, a read passes
//
//	stream   asks again, elsewhere or later, for what is still missing
//	turn     waits for a connection; what somebody waits for goes first
//	watched  gives up on a host that has fallen silent
//	redirected, authorized, measured   one request, and what it takes
//
// and a roster says which host is asked next. There are no goroutines: the
// caller's Read does the work, so that nothing is left when it stops.
package blob
