// Package oip is the open inference protocol (v2) over gRPC: its messages, and the stubs of client and
// server, made of oip.proto. It knows nothing of what they are used for.
package oip
