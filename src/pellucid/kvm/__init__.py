"""Floor 2, the hypervisor: VMs, vCPUs, requests, interrupt chips, routing and paravirtual clocks, in KVM's terms."""
