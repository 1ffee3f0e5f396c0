-- Revokes the grants of a template because the user rejected it. A leased use of them stays with its message. Repeating
-- the call with the same dedup key changes nothing.
--
-- KEYS  1 users  2 ledger  3 dedup key of the event
-- ARGV  1 openid  2 template  3 seconds to keep the dedup key
--       e.g. EVALSHA sha 3 formid:{wx1:7}:users formid:{wx1:7}:ledger formid:{wx1:7}:once:<key> oUser <template> 86400
-- Reply  how many messages the grants permitted; -1 if the event was reported before, and nothing changed
--- @include head/records head/void
assert(#KEYS == 3 and #ARGV == 3, 'void: wrong number of arguments')

if not redis.call('SET', KEYS[3], 1, 'NX', 'EX', ARGV[3]) then return -1 end
local before = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local field, uses = void_grants(before, ARGV[2])
if field ~= before then save(KEYS[1], ARGV[1], field) end
tally(KEYS[2], 'discarded', uses)
return uses
