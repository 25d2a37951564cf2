"""`agentmem doctor`: is this node well? What can be repaired is, and it is said."""
