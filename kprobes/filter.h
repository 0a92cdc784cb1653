/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who is watched. Asked before any byte is looked at. */
#ifndef MS_FILTER_H
#define MS_FILTER_H

#include "maps.h"

#define MS_CGROUP_DEPTH 12 /* levels looked up; Kubernetes nests five, systemd user sessions six */

static __always_inline void ms_watch(__u32 tgid, __u32 shard)
{
	struct ms_watched fresh = { .shard = shard };

	if (tgid == config.agent_tgid)
		return;
	if (bpf_map_update_elem(&procs, &tgid, &fresh, BPF_NOEXIST) && !bpf_map_lookup_elem(&procs, &tgid))
		ms_count(MS_MAP_FULL, 1);
}

static __always_inline struct ms_watched *ms_watched(__u32 tgid)
{
	struct ms_watched *found = bpf_map_lookup_elem(&procs, &tgid);

	if (found || !config.watch_all || tgid == config.agent_tgid || !tgid)
		return found;
	ms_watch(tgid, tgid);
	return bpf_map_lookup_elem(&procs, &tgid);
}

/* The shard of the selected cgroup that `cgroup` is or lies in, or null. */
static __always_inline __u32 *ms_selected_cgroup(struct cgroup *cgroup)
{
	struct cgroup_subsys_state *css;
	__u32 *shard;
	__u64 id;

	for (int level = 0; level < MS_CGROUP_DEPTH && cgroup; level++) {
		id = BPF_CORE_READ(cgroup, kn, id);
		shard = bpf_map_lookup_elem(&cgroups, &id);
		if (shard)
			return shard;
		css = BPF_CORE_READ(cgroup, self.parent);
		if (!css)
			return 0;
		cgroup = BPF_CORE_READ(css, cgroup);
	}
	return 0;
}

#endif
