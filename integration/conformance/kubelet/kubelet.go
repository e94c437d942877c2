// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubelet holds a daemon to a kubelet without a cluster: pods from manifests on disk, which must run, be
// restarted when they are to be and only then, and end as they are told to, over restarts and stalls of daemon, shims
// and kubelet. Its tests run in a box. Module upstream beside it is what kubelet is built from.
package kubelet

// Sysctls are those that a kubelet sets, with what it sets them to. They are the machine's, and none of a test's
// business.
var Sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// Config is that of a kubelet without a cluster, for either version of cgroups, which evicts and collects nothing.
const Config = `{
  "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
  "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
  "staticPodPath": "` + Manifests + `",
  "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
  "authorization": {"mode": "AlwaysAllow"},
  "address": "127.0.0.1", "readOnlyPort": 10255, "healthzPort": 10248,
  "registerNode": false, "enableControllerAttachDetach": false, "makeIPTablesUtilChains": false,
  "cgroupDriver": "cgroupfs", "failCgroupV1": false, "failSwapOn": false,
  "localStorageCapacityIsolation": false, "imageGCHighThresholdPercent": 100,
  "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
    "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
  "syncFrequency": "5s", "fileCheckFrequency": "2s", "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
  "podLogsDir": "/var/log/pods", "resolvConf": "/etc/resolv.conf"
}
`

// Manifests is where a kubelet of that config finds its pods.
const Manifests = "/etc/kubernetes/manifests"
