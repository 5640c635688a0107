package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/lifecycle"
)

// rereadEvery is how often watchers read again what they watch, whatever they were told.
const rereadEvery = 5 * time.Second

// settle is how long a watcher of many keys waits for further changes before it reads them all.
const settle = 10 * time.Millisecond

const (
	headerExpectLast = "Nats-Expected-Last-Subject-Sequence"
	headerSequence   = "Nats-Sequence"
	headerSubject    = "Nats-Subject"
	headerTime       = "Nats-Time-Stamp"
	headerKVOp       = "KV-Operation"
)

func buckets() []jetstream.KeyValueConfig {
	list := []jetstream.KeyValueConfig{
		{Bucket: BucketPlan, Description: "the plan", History: 16, Storage: jetstream.FileStorage},
		leaseBucket(),
		{Bucket: BucketState, Description: "reports of hosts and gpu-lets", History: 1, TTL: StateTTL, Storage: jetstream.MemoryStorage},
		{Bucket: BucketModels, Description: "registered models", History: 1, Storage: jetstream.FileStorage},
		{Bucket: BucketProfiles, Description: "profiles measured by agents", History: 1, Storage: jetstream.FileStorage},
		{Bucket: BucketSuspects, Description: "requests that were running when a gpu-let died", History: 1, TTL: SuspectTTL, Storage: jetstream.MemoryStorage},
	}
	for i := range list {
		list[i].RePublish = repeated(list[i].Bucket)
	}
	return list
}

// repeated has the server repeat every change of a bucket once it is stored: a plain subscription
// then watches it, needs no consumer and survives reconnects.
func repeated(bucket string) *jetstream.RePublish {
	return &jetstream.RePublish{Source: kvPrefix(bucket) + ">", Destination: changedPrefix(bucket) + ">"}
}

// entry is one value of a bucket.
type entry struct {
	key     string
	value   []byte
	rev     uint64
	created time.Time
}

// newer reports whether e replaces old: it has a higher revision, or the bucket was made anew and
// counts from the start.
func (e entry) newer(old entry) bool {
	return e.rev > old.rev || e.rev < old.rev && e.created.After(old.created)
}

func checkKey(bucket, key string) error {
	ok := key != "" && len(key) <= 256 && !strings.HasPrefix(key, ".") && !strings.HasSuffix(key, ".") &&
		!strings.Contains(key, "..") && !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.=/", r)
	})
	if !ok {
		return fmt.Errorf("bucket %s: key %q: expected 1 to 256 of A-Z, a-z, 0-9 and -_.=/", bucket, key)
	}
	return nil
}

// get reads one key; ErrNotFound when it is not there. Of one that was deleted the entry still tells
// the revision.
func (b *Bus) get(ctx context.Context, bucket, key string) (entry, error) {
	if err := checkKey(bucket, key); err != nil {
		return entry{}, err
	}
	ctx, cancel := apiContext(ctx)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+kvStream(bucket)+"."+kvPrefix(bucket)+key, nil)
	if err != nil {
		return entry{}, fmt.Errorf("%s %s: %w", bucket, key, unavailable(err))
	}
	return kvEntry(bucket, key, m)
}

// kvEntry is the value in an answer of the server; ErrNotFound when it says that there is none.
func kvEntry(bucket, key string, m *nats.Msg) (entry, error) {
	switch status := m.Header.Get("Status"); {
	case status == "404":
		return entry{}, fmt.Errorf("%s %s: %w", bucket, key, ErrNotFound)
	case status != "":
		return entry{}, fmt.Errorf("%s %s: %w: status %s %s", bucket, key, ErrUnavailable, status, m.Header.Get("Description"))
	}
	e, err := carried(key, m)
	if err == nil && m.Header.Get(headerKVOp) != "" {
		err = fmt.Errorf("%s %s: %w: it was deleted", bucket, key, ErrNotFound)
	}
	return e, err
}

// carried reads what the server says of a stored message in the headers of its copy.
func carried(key string, m *nats.Msg) (entry, error) {
	rev, err := strconv.ParseUint(m.Header.Get(headerSequence), 10, 64)
	if err != nil {
		return entry{}, fmt.Errorf("header %s of %s: %w", headerSequence, m.Subject, err)
	}
	created, err := time.Parse(time.RFC3339Nano, m.Header.Get(headerTime))
	if err != nil {
		return entry{}, fmt.Errorf("header %s of %s: %w", headerTime, m.Subject, err)
	}
	return entry{key: key, value: m.Data, rev: rev, created: created}, nil
}

// getOf reads the decoded value of a key; ErrNotFound when there is none.
func getOf[T any](ctx context.Context, b *Bus, bucket, key string) (v T, err error) {
	e, err := b.get(ctx, bucket, key)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(e.value, &v); err != nil {
		return v, fmt.Errorf("%s %s, revision %d: %w", bucket, key, e.rev, err)
	}
	return v, nil
}

// anyRevision lets put overwrite whatever is there.
const anyRevision = -1

// put writes v as JSON and returns the new revision. With expect >= 0 it does so only if the key
// still has that revision (0: it is not there), else ErrConflict.
func (b *Bus) put(ctx context.Context, bucket, key string, v any, expect int64) (uint64, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", bucket, key, err)
	}
	header := map[string]string{}
	if expect >= 0 {
		header[headerExpectLast] = strconv.FormatInt(expect, 10)
	}
	return b.write(ctx, bucket, key, header, value)
}

// remove deletes a key; none is fine.
func (b *Bus) remove(ctx context.Context, bucket, key string) error {
	_, err := b.write(ctx, bucket, key, map[string]string{headerKVOp: "DEL"}, nil)
	return err
}

func (b *Bus) write(ctx context.Context, bucket, key string, header map[string]string, value []byte) (uint64, error) {
	if err := checkKey(bucket, key); err != nil {
		return 0, err
	}
	msg, err := newMsg(kvPrefix(bucket)+key, header, value, b.nc.MaxPayload())
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", bucket, key, err)
	}
	ctx, cancel := apiContext(ctx)
	defer cancel()
	ack, err := b.store(ctx, msg)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", bucket, key, err)
	}
	var stored struct {
		Seq uint64 `json:"seq"`
	}
	if err := json.Unmarshal(ack.Data, &stored); err != nil {
		return 0, fmt.Errorf("%s %s: acknowledgement %.100q: %w", bucket, key, ack.Data, err)
	}
	return stored.Seq, nil
}

// list reads the newest value of all keys that match filter, in no order. A bucket that is not there
// yet is empty. It takes no consumer: who may make one may have the server send to any subject. To
// clients the bucket is all there is, and it has one value of each key.
func (b *Bus) list(ctx context.Context, bucket, filter string) ([]entry, error) {
	if b.role == RoleClient {
		return b.walk(ctx, bucket, filter)
	}
	ctx, cancel := apiContext(ctx)
	defer cancel()
	info, err := b.bucketInfo(ctx, bucket, filter)
	if err != nil {
		return nil, err
	}
	keys := make(chan string, len(info.Subjects))
	for subject := range info.Subjects {
		keys <- strings.TrimPrefix(subject, kvPrefix(bucket))
	}
	close(keys)
	var (
		mu     sync.Mutex // guards found and failed
		found  []entry
		failed error
		gets   sync.WaitGroup
	)
	for range min(listAtOnce, len(info.Subjects)) {
		gets.Go(func() {
			for key := range keys {
				e, err := b.get(ctx, bucket, key)
				mu.Lock()
				switch {
				case err == nil:
					found = append(found, e)
				case !errors.Is(err, ErrNotFound): // deleted meanwhile, or long ago
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	gets.Wait()
	return found, failed
}

// listAtOnce is how many keys are read at once.
const listAtOnce = 32

// bucketState is what the server says of a bucket's stream.
type bucketState struct {
	Subjects map[string]uint64 `json:"subjects"` // that match what was asked for
}

// bucketInfo reads a bucket's state; that of one that is not there is zero.
func (b *Bus) bucketInfo(ctx context.Context, bucket, filter string) (bucketState, error) {
	ask, err := json.Marshal(map[string]string{"subjects_filter": kvPrefix(bucket) + filter})
	if err != nil {
		return bucketState{}, err
	}
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+kvStream(bucket), ask)
	if err != nil {
		return bucketState{}, fmt.Errorf("list %s: %w", bucket, unavailable(err))
	}
	var info struct {
		State bucketState         `json:"state"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &info); err != nil {
		return bucketState{}, fmt.Errorf("list %s: %w", bucket, err)
	}
	switch {
	case info.Error == nil:
		return info.State, nil
	case info.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return bucketState{}, nil
	}
	return bucketState{}, fmt.Errorf("list %s: %w", bucket, jsError(info.Error))
}

// walk reads every kept value of all keys that match filter, oldest first, one after the other.
func (b *Bus) walk(ctx context.Context, bucket, filter string) ([]entry, error) {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	var list []entry
	for next := uint64(1); ; {
		ask, err := json.Marshal(map[string]any{"seq": next, "next_by_subj": kvPrefix(bucket) + filter})
		if err != nil {
			return nil, err
		}
		m, err := b.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+kvStream(bucket), ask)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", bucket, unavailable(err))
		}
		e, err := kvEntry(bucket, strings.TrimPrefix(m.Header.Get(headerSubject), kvPrefix(bucket)), m)
		switch {
		case err == nil:
			list = append(list, e)
		case !errors.Is(err, ErrNotFound):
			return nil, err
		case e.rev == 0: // there are no more
			return list, nil
		}
		next = e.rev + 1
	}
}

// listOf lists decoded values; one that does not decode is logged and left out.
func listOf[T any](ctx context.Context, b *Bus, bucket, filter string) ([]T, error) {
	entries, err := b.list(ctx, bucket, filter)
	if err != nil {
		return nil, err
	}
	list := make([]T, 0, len(entries))
	for _, e := range entries {
		var v T
		if err := json.Unmarshal(e.value, &v); err != nil {
			b.log.Error("unreadable value on the bus", "bucket", bucket, "key", e.key, "revision", e.rev, "error", err)
			continue
		}
		list = append(list, v)
	}
	return list, nil
}

// changed subscribes to the changes of a bucket's keys that match filter. It tells also after a
// reconnect, with a nil message: changes may have been missed.
func (b *Bus) changed(bucket, filter string, tell func(*nats.Msg)) (stop func(), err error) {
	sub, err := b.nc.Subscribe(changedPrefix(bucket)+filter, tell)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", bucket, unavailable(err))
	}
	unhook := b.hook(func() { tell(nil) })
	return func() {
		unhook()
		_ = sub.Unsubscribe()
	}, nil
}

// watch sends what load returns, at first and whenever it differs from the last time. It loads
// when a key that matches filter changed, after a reconnect, and every rereadEvery.
func watch[T any](ctx context.Context, b *Bus, bucket, filter string, load func(context.Context) (T, error)) (<-chan T, error) {
	hints := make(chan struct{}, 1)
	unsubscribe, err := b.changed(bucket, filter, func(*nats.Msg) {
		select {
		case hints <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, err
	}
	out := make(chan T, 1)
	go func() {
		defer close(out)
		defer unsubscribe()
		reread := time.NewTicker(rereadEvery)
		defer reread.Stop()
		for last := (*T)(nil); ; {
			if v, err := load(ctx); err != nil {
				b.logLoad(ctx, bucket, err)
			} else if last == nil || !reflect.DeepEqual(*last, v) {
				last = &v
				offer(out, v)
			}
			select {
			case <-ctx.Done():
				return
			case <-reread.C:
			case <-hints:
				if lifecycle.Sleep(ctx, settle) != nil {
					return
				}
			}
		}
	}()
	return out, nil
}

// logLoad tells of a failed read, which the next one mends.
func (b *Bus) logLoad(ctx context.Context, bucket string, err error) {
	if ctx.Err() == nil {
		b.log.Debug("cannot read a bucket, trying again", "bucket", bucket, "error", err)
	}
}

// offer puts v into a channel of one place, in place of what nobody has taken yet. Only one
// goroutine may send on ch.
func offer[T any](ch chan T, v T) {
	select {
	case <-ch:
	default:
	}
	ch <- v
}
