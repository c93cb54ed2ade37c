-- Leases tokens of one rate limit, by GCRA. The key holds the instant at which a whole burst may come
-- again, in microseconds of this server's clock; it vanishes when that instant has passed.
--
-- ARGV: requests per second; burst; the instant as the caller heard it last, 0 for never; tokens wanted
-- ahead of requests; requests that wait and cost one token; the cost of each other request that waits.
-- Returns the tokens leased, the microseconds until the instant, and the instant.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local span = math.ceil(burst * 1000000 / rate)

-- The later of what is stored and what the caller heard, so that a key that was lost is as it was. What
-- lies further ahead than a burst (and a clock put back by a second) has been written by nobody of ours.
local full = now
local stored = redis.pcall('GETRANGE', KEYS[1], 0, 31)
for _, heard in ipairs({ARGV[3], type(stored) == 'string' and stored or ''}) do
  local instant = tonumber(heard)
  if instant and instant > full and instant <= now + span + 1000000 then
    full = math.floor(math.min(instant, now + span))
  end
end

local free = math.floor((now + span - full) * rate / 1000000)
local leased = math.min(tonumber(ARGV[5]), free)
for i = 6, #ARGV do
  local cost = tonumber(ARGV[i])
  if leased + cost <= free then leased = leased + cost end
end
-- Nobody takes more than a quarter of what is free ahead of requests.
leased = math.max(leased, math.min(leased + tonumber(ARGV[4]), math.floor(free / 4)))
full = full + math.ceil(leased * 1000000 / rate)
-- Also where nothing is leased, so that what was lost is there again for the others.
if full > now then
  redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
end
return {leased, full - now, full}
