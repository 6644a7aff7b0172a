/* SPDX-License-Identifier: MIT */
/* What Python sees of the controller's client. */

#define MN_CTRL_MAGIC         ...
#define MN_CTRL_VERSION       ...
#define MN_CTRL_NAME_BYTES    ...
#define MN_CTRL_WHY_BYTES     ...
#define MN_CTRL_PAYLOAD_BYTES ...

struct mn_client;
const char *mn_client_path(const char *path);
int mn_client_open(struct mn_client **out, const char *path, const char *app_name, char *why,
                   uint32_t why_bytes);
int mn_client_attach(struct mn_client *c, const struct mn_chan_geometry *geo, uint64_t spin_ns,
                     struct mn_chan **out, uint32_t *channel_id, struct mn_chan_geometry *geo_out);
int mn_client_detach(struct mn_client *c, uint32_t channel_id, uint32_t linger_ms);
void mn_client_close(struct mn_client *c);
bool mn_client_alive(struct mn_client *c);
void mn_client_why(struct mn_client *c, char *why, uint32_t why_bytes);
uint32_t mn_client_forks(void);
