-- After a restore or an insert by hand, a load_id beyond the sequence would hide later loads from the models. So would
-- one of the ledger, of whose messages raw has none any more.

with

newest as (

    select max(load_id) as load_id from {{ source('raw', 'sqs_messages') }}

)

select newest.load_id
from newest
cross join {{ source('raw', 'pipeline_state') }} as pipeline_state
where newest.load_id > pipeline_state.last_load_id or pipeline_state.sequence_is_behind
