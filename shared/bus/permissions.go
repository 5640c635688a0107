package bus

// Permissions is what a role may publish and subscribe to, as NATS subjects with wildcards.
// deploy/nats.conf shows the same lists for an external server.
type Permissions struct {
	Publish, Subscribe []string
}

// PermissionsOf returns what a role needs and no more.
//
// Isolation is per role: two connections with the same NKey can read each other's inboxes. To
// separate tenants, give each its own NKey on the server, allowed to subscribe only to
// _INBOX_client.<tenant>.>, and set its Config.InboxPrefix accordingly.
func PermissionsOf(role Role) Permissions {
	own := InboxPrefix(role) + ".>"
	switch role {
	case RoleClient:
		return Permissions{
			Publish:   join([]string{"infer.>", anyCancel, resultGet}, walking(BucketModels)),
			Subscribe: join([]string{own}, changes(BucketModels)),
		}
	case RoleFrontend:
		return Permissions{
			Publish: join([]string{"infer.>", anyCancel, resultGet, planHistory}, lagReading, letterKeeping,
				reading(BucketPlan, BucketState, BucketModels, BucketProfiles)),
			Subscribe: join([]string{own, anyCancel}, changes(BucketPlan, BucketState, BucketModels, BucketProfiles)),
		}
	case RoleWorker:
		return Permissions{
			Publish: join([]string{
				"$JS.API.CONSUMER.MSG.NEXT.*." + Consumer, "$JS.ACK.>", "result.>", resultGet, "dlq.>",
				kvPrefix(BucketState) + hostKey(everything), kvPrefix(BucketState) + gpuletKey(everything), gpuletGet,
				kvPrefix(BucketProfiles) + ">", kvPrefix(BucketSuspects) + ">", suspectGet,
			}, answering, reading(BucketPlan, BucketModels, BucketProfiles)),
			Subscribe: join([]string{own, anyCancel}, changes(BucketPlan, BucketModels, BucketProfiles)),
		}
	case RolePlanner:
		return Permissions{
			Publish: join([]string{
				"$JS.API.>", "$JS.ACK.>", "$KV.>", "dlq.>", "result.>",
			}, answering),
			Subscribe: []string{own, anyCancel, "gpulet.changed.>", "$JS.EVENT.>"},
		}
	}
	return Permissions{}
}

// anyCancel are all cancellations. Whoever knows the id of a request may cancel it.
var anyCancel = CancelSubject("*", "*")

const (
	resultGet  = "$JS.API.DIRECT.GET." + StreamResults + ".result.*.*"
	suspectGet = "$JS.API.DIRECT.GET.KV_" + BucketSuspects + ".>"
)

// gpuletGet reads what gpu-lets of other hosts report.
var gpuletGet = "$JS.API.DIRECT.GET." + kvStream(BucketState) + "." + kvPrefix(BucketState) + gpuletKey(everything)

// planHistory reads old plans.
const planHistory = "$JS.API.DIRECT.GET.KV_" + BucketPlan

var (
	// lagReading lets dashboards see how far queues are behind.
	lagReading = []string{"$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.INFO.*." + Consumer}
	// letterKeeping is reading dead letters and taking them away.
	letterKeeping = []string{
		"$JS.API.STREAM.MSG.GET." + StreamDLQ, "$JS.API.STREAM.MSG.DELETE." + StreamDLQ, "$JS.API.STREAM.PURGE." + StreamDLQ,
	}
	// answering is where replies go.
	answering = []string{InboxPrefix(RoleClient) + ".>", InboxPrefix(RoleFrontend) + ".>"}
)

// walking is what it takes to read buckets, key by key or from one end to the other.
func walking(buckets ...string) []string {
	var list []string
	for _, b := range buckets {
		list = append(list, "$JS.API.DIRECT.GET."+kvStream(b), "$JS.API.DIRECT.GET."+kvStream(b)+".>")
	}
	return list
}

// reading is what it takes to read and list buckets.
func reading(buckets ...string) []string {
	var list []string
	for _, b := range buckets {
		s := kvStream(b)
		list = append(list,
			"$JS.API.STREAM.INFO."+s,
			"$JS.API.DIRECT.GET."+s+".>",
		)
	}
	return list
}

func changes(buckets ...string) []string {
	var list []string
	for _, b := range buckets {
		list = append(list, changedPrefix(b)+">")
	}
	return list
}

func join(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}
